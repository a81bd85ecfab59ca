package detect

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"launcher/internal/errs"
	"launcher/wire"
)

// device is a GPU, or a MIG slice of one, as the driver shows it.
type device struct {
	uuid   string
	parent string // of a slice
	name   string
	memory int64 // bytes, 0 = unknown
	index  int   // of the GPU; slices have their parent's
	bus    string
	pids   []int // compute processes on it
}

// source gives the devices of a machine; nil without error when it has none.
type source func(ctx context.Context) ([]device, error)

// GPUs lists the GPUs that this process may use: those that the driver shows, narrowed
// by CUDA_VISIBLE_DEVICES in env. MIG slices stand for the GPU they divide. Busy are those on
// which another user computes. A machine without GPUs gives none; a driver that does
// not work is an error, with none too.
func GPUs(ctx context.Context, root string, env []string) ([]wire.GPU, error) {
	var found []device
	var err error
	for _, src := range sources(root, env) {
		if found, err = src(ctx); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return judge(visible(found, env), root, os.Getuid()), nil
}

// judge turns devices into what the head hears of them.
func judge(ds []device, root string, uid int) []wire.GPU {
	out := make([]wire.GPU, 0, len(ds))
	for _, d := range ds {
		g := wire.GPU{UUID: d.uuid, Name: d.name, Memory: d.memory, Index: int32(d.index), Bus: d.bus}
		for _, pid := range d.pids {
			if who, yes := foreign(root, pid, uid); yes && !g.Busy {
				g.Busy, g.By = true, who
			}
		}
		out = append(out, g)
	}
	return out
}

// foreign reports whether a process is another user's, and whose. One that cannot be seen
// is: our own always can, unless it has just ended, and the next look will tell.
func foreign(root string, pid, uid int) (who string, yes bool) {
	st, err := os.Stat(filepath.Join(root, "proc", strconv.Itoa(pid)))
	if err != nil {
		return fmt.Sprintf("process %d, which cannot be seen from here", pid), true
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return fmt.Sprintf("process %d", pid), true
	case int(sys.Uid) != uid:
		return fmt.Sprintf("another user's process %d (%s)", pid, UserName(root, int(sys.Uid))), true
	}
	return "", false
}

// visible narrows devices to those that CUDA_VISIBLE_DEVICES names, in its order. The
// outer batch system sets it to hand out GPUs that it does not fence off.
func visible(ds []device, env []string) []device {
	list, set := "", false
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "CUDA_VISIBLE_DEVICES="); ok {
			list, set = v, true
		}
	}
	if !set {
		return ds
	}
	var out []device
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		n, err := strconv.Atoi(name)
		i := slices.IndexFunc(ds, func(d device) bool {
			if err == nil {
				return d.index == n && !slices.ContainsFunc(out, func(o device) bool { return o.uuid == d.uuid })
			}
			return len(name) > 4 && strings.HasPrefix(d.uuid, name)
		})
		if i < 0 { // as CUDA: the first wrong one ends the list
			break
		}
		out = append(out, ds[i])
	}
	return out
}

// parseQuery reads the output of
//
//	nvidia-smi --query-gpu=index,uuid,name,memory.total,mig.mode.current,pci.bus_id --format=csv,noheader,nounits
//
// The values of a field that a device does not have are [N/A], [Not Supported] or the like.
func parseQuery(out string) (ds []device, mig map[string]bool, err error) {
	mig = map[string]bool{}
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line == "" || line == "No devices were found" {
			continue
		}
		f := strings.Split(line, ",")
		for i := range f {
			f[i] = strings.TrimSpace(f[i])
		}
		if len(f) != 6 || !strings.HasPrefix(f[1], "GPU-") {
			return nil, nil, errs.New(errs.Corrupt, "nvidia-smi answers %.100q", line)
		}
		index, err := strconv.Atoi(f[0])
		if err != nil {
			return nil, nil, errs.New(errs.Corrupt, "nvidia-smi answers %.100q", line)
		}
		mib, _ := strconv.ParseInt(f[3], 10, 64) // [N/A] is 0: unknown
		ds = append(ds, device{uuid: f[1], name: f[2], memory: mib << 20, index: index, bus: busID(f[5])})
		mig[f[1]] = f[4] == "Enabled"
	}
	return ds, mig, nil
}

// parseList puts the MIG slices that `nvidia-smi -L` shows in the place of their GPUs. A
// GPU in MIG mode without slices cannot be used at all.
func parseList(out string, ds []device, mig map[string]bool) []device {
	parts := map[string][]device{}
	var gpu device
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		_, uuid, ok := strings.Cut(line, "(UUID: ")
		uuid = strings.TrimSuffix(uuid, ")")
		switch {
		case !ok:
		case strings.HasPrefix(line, "GPU "):
			gpu = device{}
			if i := slices.IndexFunc(ds, func(d device) bool { return d.uuid == uuid }); i >= 0 {
				gpu = ds[i]
			}
		case strings.HasPrefix(line, "MIG ") && gpu.uuid != "":
			profile := strings.Fields(line)[1]
			parts[gpu.uuid] = append(parts[gpu.uuid], device{uuid: uuid, parent: gpu.uuid, name: gpu.name + " MIG " + profile,
				memory: profileMemory(profile), index: gpu.index, bus: gpu.bus})
		}
	}
	var all []device
	for _, d := range ds {
		if mig[d.uuid] {
			all = append(all, parts[d.uuid]...)
		} else {
			all = append(all, d)
		}
	}
	return all
}

// profileMemory reads the memory out of a slice's profile, for example 3g.20gb.
func profileMemory(profile string) int64 {
	_, mem, _ := strings.Cut(profile, ".")
	mem, _, _ = strings.Cut(mem, "+")
	n, err := strconv.ParseInt(strings.TrimSuffix(mem, "gb"), 10, 64)
	if err != nil {
		return 0
	}
	return n << 30
}

// parseApps adds the processes of
//
//	nvidia-smi --query-compute-apps=gpu_uuid,pid --format=csv,noheader
//
// A slice's processes may be shown under its GPU; then they count for all its slices.
func parseApps(out string, ds []device) {
	for line := range strings.Lines(out) {
		uuid, rest, ok := strings.Cut(strings.TrimSpace(line), ",")
		pid, err := strconv.Atoi(strings.TrimSpace(rest))
		if !ok || err != nil { // [N/A], "No running processes found"
			continue
		}
		for i := range ds {
			if ds[i].uuid == uuid || ds[i].parent == uuid {
				ds[i].pids = append(ds[i].pids, pid)
			}
		}
	}
}
