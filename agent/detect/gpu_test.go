package detect

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
)

// script answers like nvidia-smi, from recorded output.
func script(t *testing.T, query, list, apps string) func(context.Context, ...string) (string, error) {
	return func(_ context.Context, args ...string) (string, error) {
		switch {
		case strings.HasPrefix(args[0], "--query-gpu="):
			return query, nil
		case args[0] == "-L":
			return list, nil
		case strings.HasPrefix(args[0], "--query-compute-apps="):
			return apps, nil
		}
		t.Fatalf("an unknown call: %q", args)
		panic("unreachable")
	}
}

const (
	uuidA = "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"
	uuidB = "GPU-80f2b0a5-7a5b-a7d8-6c8f-e5b5f2a2f0f1"
	slice = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"
	other = "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"
)

func TestSMI(t *testing.T) {
	two := "0, " + uuidA + ", NVIDIA H100 80GB HBM3, 81559, Disabled, 00000000:04:00.0\n1, " + uuidB + ", NVIDIA H100 80GB HBM3, 81559, [N/A], 00000000:23:00.0\n"
	cases := []struct {
		name              string
		query, list, apps string
		want              []device
	}{
		{"none", "", "", "", nil},
		{"none, said in words", "No devices were found\n", "", "", nil},
		{"two, one used", two, "", uuidB + ", 4711\n" + uuidB + ", 4712\n", []device{
			{uuid: uuidA, name: "NVIDIA H100 80GB HBM3", memory: 81559 << 20, bus: "0000:04:00.0"},
			{uuid: uuidB, name: "NVIDIA H100 80GB HBM3", memory: 81559 << 20, index: 1, bus: "0000:23:00.0", pids: []int{4711, 4712}}}},
		{"memory and processes are not told", "0, " + uuidA + ", NVIDIA GB10, [N/A], [N/A], 0000000F:01:00.0\n", "", "No running processes found\n" + uuidA + ", [N/A]\n", []device{
			{uuid: uuidA, name: "NVIDIA GB10", bus: "000f:01:00.0"}}},
		{"not supported", "0, " + uuidA + ", Tesla K40m, 11441, [Not Supported], [N/A]\n", "", "", []device{{uuid: uuidA, name: "Tesla K40m", memory: 11441 << 20}}},
		{"slices", "0, " + uuidA + ", NVIDIA A100-SXM4-40GB, 40960, Enabled, 00000000:07:00.0\n1, " + uuidB + ", NVIDIA A100-SXM4-40GB, 40960, Disabled, 00000000:0F:00.0\n",
			"GPU 0: NVIDIA A100-SXM4-40GB (UUID: " + uuidA + ")\n" +
				"  MIG 3g.20gb     Device  0: (UUID: " + slice + ")\n" +
				"  MIG 1g.5gb+me   Device  1: (UUID: " + other + ")\n" +
				"GPU 1: NVIDIA A100-SXM4-40GB (UUID: " + uuidB + ")\n",
			slice + ", 99\n", []device{
				{uuid: slice, parent: uuidA, name: "NVIDIA A100-SXM4-40GB MIG 3g.20gb", memory: 20 << 30, bus: "0000:07:00.0", pids: []int{99}},
				{uuid: other, parent: uuidA, name: "NVIDIA A100-SXM4-40GB MIG 1g.5gb+me", memory: 5 << 30, bus: "0000:07:00.0"},
				{uuid: uuidB, name: "NVIDIA A100-SXM4-40GB", memory: 40960 << 20, index: 1, bus: "0000:0f:00.0"}}},
		{"MIG mode without slices", "0, " + uuidA + ", NVIDIA A100-SXM4-40GB, 40960, Enabled, 00000000:07:00.0\n", "GPU 0: NVIDIA A100-SXM4-40GB (UUID: " + uuidA + ")\n", "", nil},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			got, err := askSMI(context.Background(), script(t, tc.query, tc.list, tc.apps))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(got, tc.want, func(a, b device) bool {
				return a.uuid == b.uuid && a.parent == b.parent && a.name == b.name && a.memory == b.memory && a.bus == b.bus && a.index == b.index && slices.Equal(a.pids, b.pids)
			}) {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
	if _, err := askSMI(context.Background(), script(t, "what is this\n", "", "")); !errs.Is(err, errs.Corrupt) {
		t.Errorf("nonsense: %v, want kind corrupt", err)
	}
}

// fakeSMI puts a program called nvidia-smi into a directory for PATH.
func fakeSMI(t *testing.T, text string) []string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nvidia-smi"), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return []string{"PATH=" + dir}
}

func TestSMIErrors(t *testing.T) {
	cases := []struct{ name, text, want, hint string }{
		{"mismatch", "echo 'Failed to initialize NVML: Driver/library version mismatch'; echo 'NVML library version: 535.183'; exit 18", "version mismatch", "reload"},
		{"no driver", "echo \"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running.\"; exit 9", "couldn't communicate", "modprobe"},
		{"unknown", "echo 'Failed to initialize NVML: Unknown Error'; exit 255", "Unknown Error", "container"},
		{"silent", "exit 1", "does not answer", "dmesg"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			ds, err := smi("/", fakeSMI(t, tc.text))(context.Background())
			if ds != nil || !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(strings.Join(errs.HintsOf(err), " "), tc.hint) {
				t.Errorf("%v, %v, hints %q", ds, err, errs.HintsOf(err))
			}
		})
	}
	if ds, err := smi("/", fakeSMI(t, "echo 'No devices were found'; exit 6"))(context.Background()); ds != nil || err != nil {
		t.Errorf("no devices: %v, %v", ds, err)
	}
	if ds, err := smi(t.TempDir(), []string{"PATH=/nonexistent"})(context.Background()); ds != nil || err != nil {
		t.Errorf("no nvidia-smi: %v, %v", ds, err)
	}
	root := t.TempDir()
	os.MkdirAll(filepath.Join(root, "proc/driver/nvidia"), 0o755)
	os.WriteFile(filepath.Join(root, "proc/driver/nvidia/version"), nil, 0o644)
	if _, err := smi(root, []string{"PATH=/nonexistent"})(context.Background()); !errs.Is(err, errs.NotFound) {
		t.Errorf("driver without nvidia-smi: %v", err)
	}
}

func TestBusy(t *testing.T) {
	me := os.Getpid()
	ds := []device{{uuid: uuidA, name: "A"}, {uuid: uuidB, name: "B", memory: 5, pids: []int{me}}}
	got := judge(ds, "/", os.Getuid())
	want := []wire.GPU{{UUID: uuidA, Name: "A"}, {UUID: uuidB, Name: "B", Memory: 5}}
	if !slices.Equal(got, want) {
		t.Errorf("our own process: %+v", got)
	}
	if got := judge(ds, "/", os.Getuid()+1); got[0].Busy || !got[1].Busy {
		t.Errorf("another user's process: %+v", got)
	}
	ds[0].pids = []int{1 << 22} // cannot be seen
	if got := judge(ds, "/", os.Getuid()); !got[0].Busy {
		t.Errorf("a hidden process: %+v", got)
	}
}

func TestVisible(t *testing.T) {
	ds := []device{{uuid: uuidA}, {uuid: uuidB, index: 1}, {uuid: slice, index: 2}, {uuid: other, index: 2}}
	for list, want := range map[string]string{
		"1,0": "1 0", "": "", "-1": "", "NoDevFiles": "", uuidB: "1", uuidB[:9] + "," + uuidA: "1 0", "0,7,1": "0", slice: "2", "2,2": "2 3", " 1 ": "1",
	} {
		var got []string
		for _, d := range visible(ds, []string{"CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=" + list}) {
			got = append(got, strconv.Itoa(slices.IndexFunc(ds, func(x device) bool { return x.uuid == d.uuid })))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("CUDA_VISIBLE_DEVICES=%q gives devices %q, want %q", list, got, want)
		}
	}
	if len(visible(ds, nil)) != 4 {
		t.Error("without the variable not all are visible")
	}
}

// This goes through whatever the machine really has.
func TestGPUsHere(t *testing.T) {
	gpus, err := GPUs(context.Background(), "/", os.Environ())
	t.Logf("GPUs: %+v, %v", gpus, err)
	for _, g := range gpus {
		if g.UUID == "" {
			t.Errorf("a GPU without a name: %+v", g)
		}
	}
	none, err := GPUs(context.Background(), "/", append(os.Environ(), "CUDA_VISIBLE_DEVICES="))
	if err == nil && len(none) != 0 {
		t.Errorf("hidden GPUs are shown: %+v", none)
	}
}

func FuzzSMI(f *testing.F) {
	f.Add("0, "+uuidA+", A100, 40960, Enabled, 00000000:07:00.0\n", "GPU 0: A (UUID: "+uuidA+")\n  MIG 3g.20gb Device 0: (UUID: MIG-x)\n", uuidA+", 5\n")
	f.Fuzz(func(t *testing.T, query, list, apps string) {
		ds, mig, err := parseQuery(query)
		if err != nil {
			return
		}
		ds = parseList(list, ds, mig)
		parseApps(apps, ds)
		judge(ds, "/nonexistent", 0)
	})
}
