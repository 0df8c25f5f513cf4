"""What is claimed about the kernel, fact by fact, and what proves each: rows of `conformance.py`, a test, or why none can.

Sections: 2.3 what operations on sysfs give, 2.4 rules of IOMMU groups, 2.5 and 2.6 group and cdev, 2.7 unbinding a
device in use, and "lab" what was measured in QEMU beyond that. A row belongs to the section that its id begins with.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """One claim. `proof`: ids of rows, or tests as `path::name`. `untestable`: why no proof can run here."""

    section: str
    claim: str
    proof: tuple[str, ...] = ()
    untestable: str = ""


LAB = "tests/lab/test_lab.py::"
LOG_TEXT = "a line in the kernel's log: it rotates away, so no check of ours depends on it"
FACTS = (
    Fact("2.3", "an override is cut at its first newline and keeps spaces",
         ("2.3-override-unset", "2.3-override-plain", "2.3-override-newline", "2.3-override-cut-at-newline",
          "2.3-override-keeps-spaces")),
    Fact("2.3", "an empty write changes nothing; a newline or a NUL clears",
         ("2.3-override-empty-changes-nothing", "2.3-override-newline-clears", "2.3-override-nul-clears")),
    Fact("2.3", "an override of 4095 bytes and more is EINVAL", ("2.3-override-too-long", "2.3-override-longest")),
    Fact("2.3", "bind without matching override or id is ENODEV", ("2.3-bind-without-override",)),
    Fact("2.3", "bind of an unknown or short address is ENODEV", ("2.3-bind-unknown", "2.3-bind-short-address")),
    Fact("2.3", "bind of a bound device is EBUSY, ENODEV where the override does not match",
         ("2.3-bind-bound-elsewhere", "2.3-bind-bound-here", "2.3-bind-bound-override-differs")),
    Fact("2.3", "unbind from a driver that does not own the device is ENODEV; the link of an unbound one is gone",
         ("2.3-unbind-not-owner", "2.3-unbind-link-of-unbound")),
    Fact("2.3", "drivers_probe always succeeds and changes nothing that is bound or matches no driver",
         ("2.3-probe-no-match", "2.3-probe-native", "2.3-probe-bound")),
    Fact("2.3", "drivers_probe of an unknown address is ENODEV", ("2.3-probe-unknown",)),
    Fact("2.3", "clearing the override of a bound device keeps it bound; the next probe goes to the native driver",
         ("2.3-clearing-keeps-bound",)),
    Fact("2.3", "an override wins over a native driver that loads later; an unknown name keeps a device driverless",
         ("2.3-override-wins-over-loading-driver", "2.3-override-none-keeps-driverless", "2.3-override-unknown-driver")),
    Fact("2.3", "new_id binds every unbound device of that id and steals none; a second write is EEXIST; remove_id unbinds "
         "nothing and is ENODEV the second time; garbage is EINVAL", ("2.3-new-id", "2.3-new-id-garbage")),
    Fact("2.3", "a bridge cannot be bound to vfio-pci: EINVAL", ("2.3-bind-bridge",)),
    Fact("2.3", "without an IOMMU bind is EINVAL; in the unsafe mode it succeeds and taints the kernel",
         ("2.3-no-iommu-no-group", "2.3-no-iommu-bind", "2.3-no-iommu-unsafe", "2.3-no-iommu-unsafe-not-built")),
    Fact("2.3", "rmmod vfio_pci is EAGAIN while a device is open, and otherwise unbinds every device",
         ("2.3-rmmod-vfio-pci",)),
    Fact("2.3", "remove and rescan bring a device back without override and bound to its native driver, even with "
         "drivers_autoprobe off", ("2.3-remove-rescan-goes-native", "2.3-rescan-without-autoprobe")),
    Fact("2.3", "the number of a cdev is the lowest free one and is reused", ("2.3-cdev-number-is-reused",)),
    Fact("2.3", "the number of a group survives remove and rescan here", ("2.3-rescan-without-autoprobe",)),
    Fact("2.3", "the kernel resets the function when it is opened and when it is last closed",
         (f"{LAB}test_the_kernel_resets_at_open_and_close", "tests/kata_gpu/node/test_host.py::test_open_and_close_reset")),
    Fact("2.3", "VFIO_DEVICE_RESET works while the device is held", ("2.3-device-reset",)),
    Fact("2.3", "reset without a method is ENOTTY and the file stays; unknown names and comma lists are EINVAL; `default` "
         "restores", ("2.3-reset-method-cleared", "2.3-reset-method-unknown", "2.3-reset-method-comma-list", "2.3-reset")),
    Fact("2.3", "reset takes nothing but 1", ("2.3-reset-zero", "2.3-reset-garbage")),
    Fact("2.3", "reset succeeds while somebody else holds the device", ("2.3-reset-while-held-succeeds",)),
    Fact("2.3", "an idle bound device is disabled, in D3hot and suspended; power/control=on wakes it; enable is EBUSY",
         ("2.3-enable-while-bound", "2.3-power-control")),
    Fact("2.3", "lockdown refuses configuration writes, BAR mappings and /dev/mem; binding, resets and VFIO work",
         ("2.3-lockdown-config", "2.3-lockdown-memory", "2.3-lockdown-vfio", f"{LAB}test_lockdown_boot")),
    Fact("2.4", "a bridge in the group keeps it viable, a sibling with a native driver does not, one without driver does",
         ("2.4-bridge-keeps-group-viable", "2.4-behind-a-switch-port", "2.4-sibling-native", "2.4-sibling-driverless",
          "2.4-bind-sibling-native", "2.4-bind-sibling-driverless")),
    Fact("2.4", "while a member is owned through VFIO a native driver for a sibling is EBUSY, vfio-pci is not",
         ("2.4-native-bind-while-owned", "2.4-vfio-bind-while-owned")),
    Fact("2.4", "functions of one slot without ACS share a group", ("2.4-functions-of-a-slot",)),
    Fact("2.4", "what is behind a port of a switch can be used though the port has its driver", ("2.4-behind-a-switch-port",)),
    Fact("2.4", "a conventional bridge and all behind it share a group", ("2.4-behind-a-bridge",)),
    Fact("2.4", "Kata's own runtime skips some classes inside a group",
         untestable="behaviour of Kata's code, not of the kernel"),
    Fact("2.5", "a group opens once, and not while the device is held through its cdev",
         ("2.5-group-open-twice", "2.5-second-bind")),
    Fact("2.5", "a cdev is bound once: EINVAL, and EBUSY while the group holds it",
         ("2.5-second-bind", "2.5-bind-while-group-open", "2.5-bind-while-group-only-open")),
    Fact("2.5", "nodes come and go with the driver",
         ("2.5-node-comes-with-the-driver", "2.5-node-goes-with-the-driver", "2.5-nodes", "2.5-nodes-without-iommufd")),
    Fact("2.6", "a cdev that is only open is not seen by opening the group", ("2.6-opened-cdev-unseen-by-group-probe",)),
    Fact("2.7", "the unbind of a device in use blocks until its user goes, and then completes", ("2.7-ends-with-close",)),
    Fact("2.7", "its writer is in state D after a signal, survives SIGKILL and is seen by its wait channel",
         ("2.7-writer-survives-sigkill",)),
    Fact("2.7", "the driver link and the cdev are gone at once",
         ("2.7-unbind-while-open-link-gone", "2.7-nodes-gone")),
    Fact("2.7", "unbind, bind, reset and remove block, and happen after all when the user goes",
         ("2.7-unbind-again", "2.7-bind", "2.7-reset", "2.7-remove")),
    Fact("2.7", "the override blocks on some kernels, and on 6.1 reading the uevent too",
         ("2.7-override-read", "2.7-override-read-new", "2.7-override-write", "2.7-override-write-new",
          "2.7-uevent-read", "2.7-uevent-read-new")),
    Fact("2.7", "identity, configuration, resources, power, reset methods and group can still be read",
         ("2.7-still-read",)),
    Fact("2.7", "drivers_probe returns and has no effect; other devices are unaffected",
         ("2.7-probe-no-effect", "2.7-other-device-unaffected")),
    Fact("2.7", "inventory must not read the override itself, and status tells a blocked unbind with its holder",
         ("tests/kata_gpu/node/test_transactions.py::test_wedged_unbind_is_reported_and_never_retried",
          "tests/kata_gpu/node/test_guard.py::test_status_of_a_blocked_unbind_names_the_holder")),
    Fact("2.7", "a hot-unplug request reaches the guest of a VM that holds the device",
         untestable="nothing of ours unbinds a device that a VM holds: "
         "test_every_holder_is_refused_and_untouched proves that with a nested VM"),
    Fact("2.7", "nvidia.ko waits for its users in its remove callback",
         untestable="needs NVIDIA's kernel driver and hardware; every unbind has a deadline all the same"),
    Fact("2.7", "messages about blocked release", untestable=LOG_TEXT),
    Fact("lab", "devices behind root ports of their own have groups of their own", ("2.4-own-root-port-own-group",)),
    Fact("lab", "Debian's kernels have no IOMMUFD: no /dev/iommu and no nodes of cdevs", ("2.5-nodes-without-iommufd",)),
    Fact("lab", "without interrupt remapping the group is viable and VFIO_SET_IOMMU is EPERM, until unsafe interrupts are "
         "allowed", ("lab-no-remapping", "lab-no-remapping-cdev")),
    Fact("lab", "with iommu=pt the group's type is identity and all works", ("lab-passthrough-type",)),
    Fact("lab", "vfio-pci.ids= on the command line binds at boot where vfio-pci is built in", ("lab-vfio-ids-at-boot",)),
    Fact("lab", "a virtio-iommu gives groups only when drivers probe",
         untestable="exists in virtual machines only: PLT-02 wants bare metal"),
    Fact("lab", "a blocked remove keeps the lock of rescan: it blocks for the whole machine", ("2.7-remove-blocks-rescan",)),
    Fact("lab", "while an unbind is blocked, opening the group is EBUSY and returns", ("2.7-group-open",)),
    Fact("lab", "the cdev of a device whose sibling has no driver can be bound", ("2.4-bind-sibling-driverless",)),
)  # fmt: skip
