// Segments a scan through Triton's gRPC, without ctseg: docs/api.md has each step in words.
//   npm ci && node segment.mjs HOST:PORT ENTRY LABELS.nii.gz SCAN.nii.gz [FURTHER_CHANNEL.nii.gz ...]
// ENTRY is liver_scan for the model liver, and the name of a recipe itself.

import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gunzipSync, gzipSync } from "node:zlib";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const HEADER_BYTES = 352;
const TYPES = { 4: ["voxels_int16", "INT16"], 16: ["voxels_fp32", "FP32"] }; // NIfTI's words for int16 and float32

function connect(url) {
  const { inference } = grpc.loadPackageDefinition(
    protoLoader.loadSync(fileURLToPath(new URL("triton.proto", import.meta.url)), { keepCase: true }),
  );
  const service = new inference.GRPCInferenceService(url, grpc.credentials.createInsecure(), {
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
  });
  const ask = (method, request) =>
    new Promise((resolve, reject) =>
      service[method](request, (error, answer) => (error ? reject(error) : resolve(answer))),
    );
  return { ask, close: () => service.close() };
}

/** Returns the name of the reader that a model was trained with; of a recipe, that of its first member. */
async function readerOf(ask, model) {
  const { config } = await ask("ModelConfig", { name: model });
  const key = Object.keys(config.parameters).find((name) => /^ctseg_(spec|recipe)\./.test(name));
  const found = JSON.parse(config.parameters[key].string_value);
  return found.reader ?? readerOf(ask, found.members[0].model);
}

/** Returns header and voxels of a NIfTI file; its voxels lie as the server expects them, x fastest. */
function readNifti(path) {
  const packed = readFileSync(path);
  const file = packed[0] === 0x1f ? gunzipSync(packed) : packed;
  const plain =
    file.readInt32LE(0) === 348 &&
    file.readInt16LE(40) === 3 &&
    file.readInt16LE(70) in TYPES &&
    file.readFloatLE(108) === HEADER_BYTES &&
    [0, 1].includes(file.readFloatLE(112)) &&
    file.readFloatLE(116) === 0;
  if (!plain) {
    throw new Error(`${path}: expected little-endian NIfTI-1 of int16 or float32 without scaling: write it so`);
  }
  return { header: file.subarray(0, HEADER_BYTES), voxels: file.subarray(HEADER_BYTES) };
}

async function segment(ask, entry, paths) {
  const reader = await readerOf(ask, entry.replace(/_scan$/, ""));
  if (reader.endsWith("WithReorient")) {
    throw new Error(`${entry} was trained with ${reader}: turn the scan to RAS first`);
  }
  const channels = paths.map(readNifti);
  const { header } = channels[0];
  if (channels.some((channel) => !channel.header.subarray(0, 120).equals(header.subarray(0, 120)))) {
    throw new Error(`${paths.join(", ")}: expected one grid and one type`);
  }
  const [x, y, z] = [42, 44, 46].map((place) => header.readInt16LE(place));
  const [name, datatype] = TYPES[header.readInt16LE(70)];
  const spacing = Float64Array.from([88, 84, 80], (place) => header.readFloatLE(place));
  const answer = await ask("ModelInfer", {
    model_name: entry,
    inputs: [
      { name, datatype, shape: [channels.length, z, y, x] },
      { name: "spacing_mm", datatype: "FP64", shape: [3] },
    ],
    raw_input_contents: [Buffer.concat(channels.map(({ voxels }) => voxels)), Buffer.from(spacing.buffer)],
    outputs: [{ name: "labels" }, { name: "report" }],
    parameters: {}, // such as { tile_step_size: { string_param: "0.75" }, mirroring: { bool_param: false } }
  });
  const contents = Object.fromEntries(answer.outputs.map((output, at) => [output.name, answer.raw_output_contents[at]]));
  const labelHeader = Buffer.from(header);
  const isLarge = contents.labels.length === 2 * x * y * z;
  labelHeader.writeInt16LE(isLarge ? 512 : 2, 70); // uint16 or uint8
  labelHeader.writeInt16LE(isLarge ? 16 : 8, 72);
  return { file: Buffer.concat([labelHeader, contents.labels]), report: contents.report.toString() };
}

const [url, entry, target, ...paths] = process.argv.slice(2);
if (paths.length === 0) {
  process.stderr.write("usage: node segment.mjs HOST:PORT ENTRY LABELS.nii.gz SCAN.nii.gz [FURTHER_CHANNEL ...]\n");
  process.exit(2);
}
const { ask, close } = connect(url);
try {
  const { file, report } = await segment(ask, entry, paths);
  writeFileSync(target, gzipSync(file));
  process.stdout.write(`${report}\n`);
} catch (error) {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
} finally {
  close();
}
