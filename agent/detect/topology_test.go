package detect

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"launcher/wire"
)

func recorded(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata/topo", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// numbered are n GPUs as nvidia-smi shows them.
func numbered(n int) (gpus []wire.GPU) {
	for i := range n {
		gpus = append(gpus, wire.GPU{UUID: "GPU-" + strconv.Itoa(i), Index: int32(i)})
	}
	return gpus
}

// TestTopo reads what real machines have printed.
func TestTopo(t *testing.T) {
	cases := []struct {
		name string
		gpus int
		text string // links, best first
		row  string // of the last GPU
		numa string
	}{
		{"v100-8", 8, "NV2 NV1 SYS", "SYS SYS SYS NV1 NV2 NV1 NV2 ?", "0 0 0 0 1 1 1 1"},
		{"dgx-1-old", 8, "NV2 NV1 SYS", "SYS SYS SYS NV1 NV2 NV1 NV2 ?", "-1 -1 -1 -1 -1 -1 -1 -1"},
		{"dgx-a100", 8, "NV12", "NV12 NV12 NV12 NV12 NV12 NV12 NV12 ?", "3 3 1 1 7 7 5 5"},
		{"h100-8", 8, "NV18", "NV18 NV18 NV18 NV18 NV18 NV18 NV18 ?", "0 0 0 0 1 1 1 1"},
		{"h100-4-vm", 4, "NV18", "NV18 NV18 NV18 ?", "0 1 1 1"},
		{"dgx-2", 16, "NV6", "NV6 NV6 NV6 NV6 NV6 NV6 NV6 NV6 NV6 NV6 NV6 NV6 NV6 NV6 NV6 ?", strings.TrimSuffix(strings.Repeat("-1 ", 16), " ")},
		{"a6000-3", 3, "NV4 NODE", "NODE NODE ?", "0 0 0"},
		{"k80-4", 4, "PIX PHB", "PHB PHB PIX ?", "-1 -1 -1 -1"},
		{"rtx-5", 5, "PHB NODE SYS", "SYS NODE NODE PHB ?", "1 0 0 0 0"},
		{"rtx4090-8", 8, "SYS", "SYS SYS SYS SYS SYS SYS SYS ?", "0 0 0 0 1 1 1 1"},
	}
	for _, tc := range cases {
		for form, out := range map[string]string{"as printed": recorded(t, tc.name), "with spaces": strings.ReplaceAll(recorded(t, tc.name), "\t", "    ")} {
			if tc.name == "h100-4-vm" && form == "with spaces" {
				continue // a blank column is lost
			}
			top := wire.Topology{GPUs: places(t.TempDir(), numbered(tc.gpus), parseTopo(out))}
			var row, numa []string
			for _, l := range top.GPUs[tc.gpus-1].Links {
				row = append(row, l.String())
			}
			for _, g := range top.GPUs {
				numa = append(numa, strconv.Itoa(int(g.NUMA)))
			}
			if top.String() != tc.text || strings.Join(row, " ") != tc.row || strings.Join(numa, " ") != tc.numa {
				t.Errorf("%s, %s: %q, last row %q, NUMA %q", tc.name, form, top, strings.Join(row, " "), strings.Join(numa, " "))
			}
		}
	}
	if l := parseTopo(recorded(t, "one")); len(l.links) != 0 || l.numa[0] != 0 {
		t.Errorf("one GPU: %+v", l)
	}
}

// sysfs puts files of /sys under a root.
func sysfs(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, "sys", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestTopologyOfMachine: the kernel's word on NUMA, the driver's on links, each also alone.
func TestTopologyOfMachine(t *testing.T) {
	root := sysfs(t, map[string]string{
		"devices/system/node/node0/cpulist": "0-3,8-11\n", "devices/system/node/node1/cpulist": "4-7\n", "devices/system/node/node2/cpulist": "\n",
		"devices/system/node/possible":              "0-2\n",
		"bus/pci/devices/0000:04:00.0/numa_node":    "1\n",
		"bus/pci/devices/0000:23:00.0/numa_node":    "-1\n",
		"devices/system/node/node11/meminfo":        "",
		"devices/system/node/nodes/cpulist":         "0\n",
		"devices/system/node/node999999999/cpulist": "x\n",
	})
	env := fakeSMI(t, "test \"$*\" = 'topo -m' && cat '"+filepath.Join(must(os.Getwd()), "testdata/topo/a6000-3.txt")+"'\n")
	env[0] += ":/bin:/usr/bin"
	gpus := []wire.GPU{{UUID: "a", Index: 0, Bus: "0000:04:00.0"}, {UUID: "b", Index: 1, Bus: "0000:23:00.0"}, {UUID: "m1", Index: 2}, {UUID: "m2", Index: 2}, {UUID: "d", Declared: true}}
	top, err := Topology(context.Background(), root, env, gpus)
	if err != nil || top.String() != "NV4 PIX NODE, 2 NUMA nodes" || !slices.Equal(top.NUMA[0].CPUs, []int{0, 1, 2, 3, 8, 9, 10, 11}) || top.NUMA[1].ID != 1 {
		t.Fatalf("%s: %+v, %v", top, top, err)
	}
	want := []wire.GPUPlace{
		{UUID: "a", NUMA: 1, Links: []wire.Link{0, 400, 20, 20, 0}}, {UUID: "b", NUMA: 0, Links: []wire.Link{400, 0, 20, 20, 0}},
		{UUID: "m1", NUMA: 0, Links: []wire.Link{20, 20, 0, 50, 0}}, {UUID: "m2", NUMA: 0, Links: []wire.Link{20, 20, 50, 0, 0}}, {UUID: "d", NUMA: -1}}
	if !slices.EqualFunc(top.GPUs, want, func(a, b wire.GPUPlace) bool {
		return a.UUID == b.UUID && a.NUMA == b.NUMA && slices.Equal(a.Links, b.Links)
	}) {
		t.Errorf("got  %+v\nwant %+v", top.GPUs, want)
	}
	none, err := Topology(context.Background(), t.TempDir(), []string{"PATH=/nonexistent"}, numbered(2))
	if err != nil || none.Known() || none.String() != "" {
		t.Errorf("a machine that tells nothing: %+v, %v", none, err)
	}
	if _, err := Topology(context.Background(), root, fakeSMI(t, "echo 'Driver/library version mismatch'; exit 18"), numbered(2)); err == nil {
		t.Error("a driver that does not work is no error")
	}
	cpus, err := Topology(context.Background(), root, []string{"PATH=/nonexistent"}, nil)
	if err != nil || cpus.String() != "2 NUMA nodes" {
		t.Errorf("cores alone: %s, %v", cpus, err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestBusID(t *testing.T) {
	for in, want := range map[string]string{"00000000:0F:00.0": "0000:0f:00.0", "0001:07:00.0": "0001:07:00.0", "00010000:01:00.0": "10000:01:00.0", "[N/A]": "", "": "", "0:../../x": "", "00000000:..": ""} {
		if got := busID(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestDeclared: a declared GPU has the same UUID each time, another one than its
// neighbours, and programs know it by number.
func TestDeclared(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/machine-id"), []byte("8e3f\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a, b, c := DeclaredGPU(root, "", 0), DeclaredGPU(root, "", 0), DeclaredGPU(root, "", 1)
	if a != b || a.UUID == c.UUID || a.UUID == DeclaredGPU(t.TempDir(), "", 0).UUID || a.UUID == DeclaredGPU(root, "job 1", 0).UUID {
		t.Errorf("%+v %+v %+v", a, b, c)
	}
	if len(a.UUID) != len(uuidA) || strings.Count(a.UUID, "-") != 5 || c.Visible() != "1" {
		t.Errorf("%q, visible as %q", a.UUID, c.Visible())
	}
}

func FuzzTopo(f *testing.F) {
	for _, name := range []string{"v100-8", "dgx-1-old", "h100-8", "h100-4-vm", "k80-4", "one"} {
		f.Add(recorded(f, name))
	}
	f.Add("GPU0 GPU1 CPU\nGPU0\t\x1b[\tNV0\nGPU1 NV99999999999 X 0 70000\n")
	f.Fuzz(func(t *testing.T, out string) {
		l := parseTopo(out)
		for k, link := range l.links {
			if link <= wire.LinkUnknown || k[0] == k[1] || wire.ParseLink(link.String()) != link {
				t.Fatalf("%v: %v", k, link)
			}
		}
		top := wire.Topology{GPUs: places("/nonexistent", numbered(4), l)}
		_ = top.String()
	})
}
