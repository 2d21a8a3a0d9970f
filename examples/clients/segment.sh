#!/usr/bin/env bash
# Segments a scan through Triton's HTTP with curl alone, without ctseg: docs/api.md has each step in words.
#   segment.sh http://HOST:PORT ENTRY LABELS.nii.gz SCAN.nii.gz [FURTHER_CHANNEL.nii.gz ...]
# ENTRY is liver_scan for the model liver, and the name of a recipe itself. What else curl needs (a certificate, a
# password) stands in ~/.curlrc.
set -euo pipefail
export LC_ALL=C # numbers with a point, lengths in bytes

fail() {
    echo "$1" >&2
    exit 1
}

[ $# -ge 4 ] || fail "usage: segment.sh http://HOST:PORT ENTRY LABELS.nii.gz SCAN.nii.gz [FURTHER_CHANNEL.nii.gz ...]"
url=$1 entry=$2 target=$3
shift 3
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

ask() { # the answer becomes a file, and its headers another
    : > "$work/answer"
    curl -sS --fail-with-body -D "$work/headers" -o "$work/answer" "$@" || fail "$(cat "$work/answer")"
}

field() { # of a NIfTI header: type as od has it, first byte, bytes
    od -A n -t "$1" -j "$2" -N "$3" "$work/header" | tr -s ' \n' ' '
}

ask "$url/v2/models/${entry%_scan}/config"
if grep -q ctseg_recipe "$work/answer"; then # the members of a recipe read alike
    ask "$url/v2/models/$(sed 's/.*members[^]]*model\\":\\"\([^\\]*\).*/\1/' "$work/answer")/config"
fi
if grep -q WithReorient "$work/answer"; then
    fail "$entry was trained with a reader that turns scans to RAS: turn the scan first"
fi

for channel in "$@"; do
    gzip -dcf "$channel" > "$work/scan"
    head -c 352 "$work/scan" > "$work/header"
    tail -c +353 "$work/scan" >> "$work/voxels"
    # bytes of the header, axes, first byte of the voxels, slope and intercept
    echo "$(field d4 0 4)$(field d2 40 2)$(field f4 108 12)" |
        awk '{ exit !($1 == 348 && $2 == 3 && $3 == 352 && ($4 == 0 || $4 == 1) && $5 == 0) }' ||
        fail "$channel: expected a little-endian NIfTI-1 volume without scaling: write it so, or use segment.py"
    head -c 108 "$work/header" | tail -c +41 > "$work/grid"
    [ -e "$work/first" ] || cp "$work/grid" "$work/first"
    cmp -s "$work/first" "$work/grid" || fail "$channel: expected the grid and type of the first channel"
done

read -r x y z <<< "$(field d2 42 6)"
read -r dx dy dz <<< "$(field f4 80 12)"
case $(($(field d2 70 2))) in
    4) name=voxels_int16 type=INT16 ;;
    16) name=voxels_fp32 type=FP32 ;;
    *) fail "$1: expected voxels of int16 or float32: write it so, or use segment.py" ;;
esac
bytes=$(($(wc -c < "$work/voxels")))
json='{"inputs": [{"name": "'$name'", "datatype": "'$type'", "shape": ['$#', '$z', '$y', '$x'],
                   "parameters": {"binary_data_size": '$bytes'}},
                  {"name": "spacing_mm", "datatype": "FP64", "shape": [3], "data": ['$dz', '$dy', '$dx']}],
       "outputs": [{"name": "labels", "parameters": {"binary_data": true}},
                   {"name": "report", "parameters": {"binary_data": true}}]}'
{ printf %s "$json"; cat "$work/voxels"; } > "$work/request"
# -T, for with --data curl would call it a form, and Triton 2.51 dies of forms of 4 MB and more
ask -X POST -T "$work/request" -H "Inference-Header-Content-Length: ${#json}" "$url/v2/models/$entry/infer"

# the answer is JSON, labels, report; labels of one byte, or of two where one is above 255
length=$(awk 'tolower($1) == "inference-header-content-length:" { print $2 + 0 }' "$work/headers")
width=1 nifti='\0002\0\0010\0'
if head -c "$length" "$work/answer" | grep -q UINT16; then
    width=2 nifti='\0\0002\0020\0'
fi
tail -c +$((length + 1)) "$work/answer" > "$work/outputs"
{
    head -c 70 "$work/header"
    printf %b "$nifti" # type and bits of a voxel
    tail -c +75 "$work/header"
    head -c $((x * y * z * width)) "$work/outputs"
} | gzip > "$target"
tail -c +$((x * y * z * width + 1)) "$work/outputs"
echo
