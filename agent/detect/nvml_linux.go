//go:build cgo

package detect

import (
	"context"
	"fmt"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"launcher/internal/errs"
	"launcher/wire"
)

// sources is where devices are learnt, best first: this build can load NVML itself.
func sources(root string, env []string) []source {
	return []source{askNVML, smi(root, env)}
}

// askNVML asks the driver's library. That there is none is an error here, upon which
// nvidia-smi gets its turn.
func askNVML(ctx context.Context) (ds []device, err error) {
	if r := nvml.Init(); r != nvml.SUCCESS {
		return nil, nvmlError("starting NVML", r)
	}
	defer nvml.Shutdown()
	n, r := nvml.DeviceGetCount()
	if r != nvml.SUCCESS {
		return nil, nvmlError("counting GPUs", r)
	}
	for i := range n {
		h, r := nvml.DeviceGetHandleByIndex(i)
		if r != nvml.SUCCESS { // lost, or fenced off from us
			continue
		}
		gpu := describe(h, i)
		if on, _, r := h.GetMigMode(); r == nvml.SUCCESS && on == nvml.DEVICE_MIG_ENABLE {
			ds = append(ds, sliced(h, gpu)...)
			continue
		}
		if gpu.uuid != "" {
			ds = append(ds, gpu)
		}
	}
	return ds, nil
}

func describe(h nvml.Device, index int) device {
	d := device{index: index}
	if v, r := h.GetUUID(); r == nvml.SUCCESS {
		d.uuid = v
	}
	if v, r := h.GetName(); r == nvml.SUCCESS {
		d.name = v
	}
	if v, r := h.GetMemoryInfo(); r == nvml.SUCCESS {
		d.memory = int64(v.Total)
	}
	if v, r := h.GetPciInfo(); r == nvml.SUCCESS {
		d.bus = busOf(v)
	}
	if ps, r := h.GetComputeRunningProcesses(); r == nvml.SUCCESS {
		for _, p := range ps {
			d.pids = append(d.pids, int(p.Pid))
		}
	}
	return d
}

// sliced gives the MIG slices of a GPU.
func sliced(h nvml.Device, gpu device) (ds []device) {
	most, r := h.GetMaxMigDeviceCount()
	if r != nvml.SUCCESS {
		return nil
	}
	for i := range most {
		m, r := h.GetMigDeviceHandleByIndex(i)
		if r != nvml.SUCCESS {
			continue
		}
		d := describe(m, gpu.index)
		d.parent, d.bus = gpu.uuid, gpu.bus
		if !strings.Contains(d.name, "MIG") {
			d.name = fmt.Sprintf("%s MIG %d", gpu.name, i)
		}
		if d.uuid != "" {
			ds = append(ds, d)
		}
	}
	return ds
}

// layouts is where it is learnt how GPUs lie, best first.
func layouts(env []string) []layoutSource { return []layoutSource{nvmlLayout, smiLayout(env)} }

// nvmlLayout asks the driver's library.
func nvmlLayout(ctx context.Context) (layout, error) {
	if r := nvml.Init(); r != nvml.SUCCESS {
		return layout{}, nil // nvidia-smi gets its turn
	}
	defer nvml.Shutdown()
	n, r := nvml.DeviceGetCount()
	if r != nvml.SUCCESS {
		return layout{}, nvmlError("counting GPUs", r)
	}
	ds := make([]nvml.Device, n)
	for i := range ds {
		if h, r := nvml.DeviceGetHandleByIndex(i); r == nvml.SUCCESS {
			ds[i] = h
		}
	}
	return layoutOf(ds), nil
}

// layoutOf works out what joins devices; nil stands for one that cannot be asked.
func layoutOf(ds []nvml.Device) layout {
	l := layout{links: map[[2]int]wire.Link{}}
	peers := make([]map[string]int, len(ds)) // NVLinks to each PCI address; "" = to switches
	buses := make([]string, len(ds))
	for i, d := range ds {
		if d != nil {
			buses[i], peers[i] = nvLinks(d)
		}
	}
	for i, a := range ds {
		for j, b := range ds {
			if i == j || a == nil || b == nil {
				continue
			}
			// GPUs at the same switches reach each other over all their links.
			n := peers[i][buses[j]]
			if buses[j] == "" || n == 0 {
				n = min(peers[i][""], peers[j][""])
			}
			if n > 0 {
				l.links[[2]int{i, j}] = wire.Link(n) * wire.LinkNV
			} else if level, r := a.GetTopologyCommonAncestor(b); r == nvml.SUCCESS {
				l.links[[2]int{i, j}] = pathOf(level)
			}
		}
	}
	return l
}

// nvLinks counts a device's active NVLinks by where they end.
func nvLinks(d nvml.Device) (bus string, peers map[string]int) {
	if v, r := d.GetPciInfo(); r == nvml.SUCCESS {
		bus = busOf(v)
	}
	peers = map[string]int{}
	for i := range nvml.NVLINK_MAX_LINKS {
		if on, r := d.GetNvLinkState(i); r != nvml.SUCCESS || on != nvml.FEATURE_ENABLED {
			continue
		}
		if kind, r := d.GetNvLinkRemoteDeviceType(i); r == nvml.SUCCESS && kind == nvml.NVLINK_DEVICE_TYPE_SWITCH {
			peers[""]++
		} else if v, r := d.GetNvLinkRemotePciInfo(i); r == nvml.SUCCESS {
			peers[busOf(v)]++
		}
	}
	return bus, peers
}

func pathOf(level nvml.GpuTopologyLevel) wire.Link {
	switch level {
	case nvml.TOPOLOGY_INTERNAL, nvml.TOPOLOGY_SINGLE:
		return wire.LinkPIX
	case nvml.TOPOLOGY_MULTIPLE:
		return wire.LinkPXB
	case nvml.TOPOLOGY_HOSTBRIDGE:
		return wire.LinkPHB
	case nvml.TOPOLOGY_NODE:
		return wire.LinkNODE
	case nvml.TOPOLOGY_SYSTEM:
		return wire.LinkSYS
	}
	return wire.LinkUnknown
}

func busOf(v nvml.PciInfo) string {
	return fmt.Sprintf("%04x:%02x:%02x.0", v.Domain, v.Bus, v.Device)
}

func nvmlError(what string, r nvml.Return) error {
	return errs.New(errs.Unavailable, "%s: %s", what, nvml.ErrorString(r))
}
