//go:build cgo

package detect

import (
	"context"
	"fmt"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"launcher/internal/errs"
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
		d.parent = gpu.uuid
		if !strings.Contains(d.name, "MIG") {
			d.name = fmt.Sprintf("%s MIG %d", gpu.name, i)
		}
		if d.uuid != "" {
			ds = append(ds, d)
		}
	}
	return ds
}

func nvmlError(what string, r nvml.Return) error {
	return errs.New(errs.Unavailable, "%s: %s", what, nvml.ErrorString(r))
}
