"""Trainers that build their network by their own code, in the three forms that nnU-Net has asked for it."""

_BEGIN = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans


class nnUNetTrainerOwnNetwork(nnUNetTrainer):
    @staticmethod
    def build_network_architecture("""

FORMS = {
    # up to 2.2
    "dataset": f"""{_BEGIN}plans_manager, dataset_json, configuration_manager, num_input_channels,
                                   enable_deep_supervision=True):
        return get_network_from_plans(plans_manager, dataset_json, configuration_manager, num_input_channels,
                                      deep_supervision=enable_deep_supervision)
""",
    # 2.3 to 2.6
    "arguments": f"""{_BEGIN}architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                   num_input_channels, num_output_channels, enable_deep_supervision=True):
        return get_network_from_plans(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                      num_input_channels, num_output_channels, allow_init=True,
                                      deep_supervision=enable_deep_supervision)
""",
    # from 2.7
    "managers": f"""{_BEGIN}plans_manager, configuration_manager, num_input_channels, num_output_channels,
                                   enable_deep_supervision=True):
        return get_network_from_plans(configuration_manager.network_arch_class_name,
                                      configuration_manager.network_arch_init_kwargs,
                                      configuration_manager.network_arch_init_kwargs_req_import,
                                      num_input_channels, num_output_channels, allow_init=True,
                                      deep_supervision=enable_deep_supervision)
""",
}
"""Source of the trainer's file, by form."""
