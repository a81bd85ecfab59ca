//go:build cgo

package detect

import (
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"launcher/wire"
)

// nvmlGPU is a device at a bus number, with NVLinks to buses (0 = a switch, -1 = not
// active) and PCIe levels by bus.
func nvmlGPU(bus uint32, links []int, levels map[uint32]nvml.GpuTopologyLevel) nvml.Device {
	return &mock.Device{
		GetPciInfoFunc: func() (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{Bus: bus}, nvml.SUCCESS },
		GetNvLinkStateFunc: func(i int) (nvml.EnableState, nvml.Return) {
			switch {
			case i >= len(links):
				return 0, nvml.ERROR_INVALID_ARGUMENT
			case links[i] < 0:
				return nvml.FEATURE_DISABLED, nvml.SUCCESS
			}
			return nvml.FEATURE_ENABLED, nvml.SUCCESS
		},
		GetNvLinkRemoteDeviceTypeFunc: func(i int) (nvml.IntNvLinkDeviceType, nvml.Return) {
			if links[i] == 0 {
				return nvml.NVLINK_DEVICE_TYPE_SWITCH, nvml.SUCCESS
			}
			return nvml.NVLINK_DEVICE_TYPE_GPU, nvml.SUCCESS
		},
		GetNvLinkRemotePciInfoFunc: func(i int) (nvml.PciInfo, nvml.Return) {
			return nvml.PciInfo{Bus: uint32(links[i])}, nvml.SUCCESS
		},
		GetTopologyCommonAncestorFunc: func(o nvml.Device) (nvml.GpuTopologyLevel, nvml.Return) {
			p, _ := o.GetPciInfo()
			return levels[p.Bus], nvml.SUCCESS
		},
	}
}

// TestNVMLLayout: direct NVLinks are counted by their other end, links to switches reach
// all that are at switches, and the rest goes by PCIe.
func TestNVMLLayout(t *testing.T) {
	l := layoutOf([]nvml.Device{
		nvmlGPU(1, []int{2, 2, 3, -1}, map[uint32]nvml.GpuTopologyLevel{4: nvml.TOPOLOGY_SYSTEM}),
		nvmlGPU(2, []int{1, 1}, map[uint32]nvml.GpuTopologyLevel{3: nvml.TOPOLOGY_HOSTBRIDGE, 4: nvml.TOPOLOGY_NODE}),
		nvmlGPU(3, []int{1}, map[uint32]nvml.GpuTopologyLevel{2: nvml.TOPOLOGY_HOSTBRIDGE, 4: nvml.TOPOLOGY_MULTIPLE}),
		nvmlGPU(4, nil, map[uint32]nvml.GpuTopologyLevel{1: nvml.TOPOLOGY_SYSTEM, 2: nvml.TOPOLOGY_NODE, 3: nvml.TOPOLOGY_SINGLE}),
		nil,
	})
	for pair, want := range map[[2]int]wire.Link{
		{0, 1}: 2 * wire.LinkNV, {1, 0}: 2 * wire.LinkNV, {0, 2}: wire.LinkNV, {1, 2}: wire.LinkPHB, {0, 3}: wire.LinkSYS, {1, 3}: wire.LinkNODE,
		{2, 3}: wire.LinkPXB, {3, 2}: wire.LinkPIX, {0, 4}: wire.LinkUnknown,
	} {
		if got := l.links[pair]; got != want {
			t.Errorf("%v: %v, want %v", pair, got, want)
		}
	}
	var switched []nvml.Device
	for i := range uint32(8) {
		switched = append(switched, nvmlGPU(i+1, make([]int, 12), nil))
	}
	if l := layoutOf(switched); len(l.links) != 56 || l.links[[2]int{0, 7}] != 12*wire.LinkNV {
		t.Errorf("behind switches: %v", l.links)
	}
}
