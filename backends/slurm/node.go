package slurm

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// nodesFile is what the agents of a job are started with. It is readable for its user
// only and is removed when the job has ended.
type nodesFile struct {
	ID     string // of the cluster
	Config wire.NodeConfig
	Nodes  []wire.NodeID // one for each task of the step, in order
	Epochs []wire.Epoch
}

func removeKey(r record) error {
	r.forgetWays()
	return os.Remove(r.path(nodesExt))
}

// Node is what runs on each node of a job, as a task of its step: it takes its part of the
// file, a directory on the machine itself, and what Slurm granted there, and lets start run
// the node in the foreground until nothing of it is left. say is the job's log.
func Node(ctx context.Context, file, socket string, say io.Writer, start func(ctx context.Context, config io.Reader) error) error {
	// Slurm tells a step to end by SIGTERM at any time, also while its last files are removed.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	var brought []byte
	if socket != "" {
		var undo func()
		var err error
		brought, undo, err = await(ctx, socket)
		defer undo()
		if err != nil {
			return err
		}
	}
	cfg, id, err := ownConfig(file, brought, os.Getenv)
	if err != nil {
		return err
	}
	base, err := nodeBase()
	if err != nil {
		return err
	}
	sweep(base)
	cfg.Dir = filepath.Join(base, fmt.Sprintf("%s-%s.%d", id, cfg.Node, cfg.Epoch))
	if socket != "" {
		cfg.CacheDir = filepath.Join(cfg.Dir, "cache")
	}
	note := grant(&cfg, os.Getenv)
	for _, k := range otherGPUs {
		_ = os.Unsetenv(k)
	}
	if note != "" {
		cfg.Note = fmt.Sprintf("node %s on %s: %s", cfg.Node, ownHost(), note)
		fmt.Fprintln(say, cfg.Note)
	}
	defer func() {
		_ = os.RemoveAll(cfg.Dir)
		_ = os.Remove(base) // the last one's
	}()
	if socket == "" {
		g := gate{cfg: &cfg, file: strings.TrimSuffix(file, nodesExt) + wayExt + os.Getenv("SLURM_PROCID"), say: say, patience: refusedLong}
		shut, err := g.open(ctx)
		if err != nil {
			return errs.Wrap(errs.Unknown, err, "node %s on %s", cfg.Node, ownHost())
		}
		defer shut()
	}
	if err = start(ctx, strings.NewReader(string(wire.Marshal(cfg)))); err != nil {
		if tail := lastLines(filepath.Join(cfg.Dir, "agent.log")); tail != "" {
			fmt.Fprintf(say, "node %s on %s, the end of its log:\n%s\n", cfg.Node, ownHost(), tail)
		}
		return errs.New(errs.KindOf(err), "node %s on %s: %v", cfg.Node, ownHost(), err) // the log that its hint names is gone with the node
	}
	return nil
}

// ownConfig reads this task's part of the file.
func ownConfig(file string, data []byte, env func(string) string) (cfg wire.NodeConfig, id string, err error) {
	if data == nil {
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return cfg, "", errs.Wrap(errs.NotFound, err, "what this node is to be on %s", ownHost()).
			Hint("compute nodes must see the state directory ($LAUNCHER_HOME) at the same path, or say shared_home = false in the pool; or the cluster has gone down meanwhile")
	}
	var f nodesFile
	if err := wire.Unmarshal(data, &f); err != nil {
		return cfg, "", errs.Wrap(errs.Corrupt, err, "%s", file)
	}
	k, err := strconv.Atoi(env("SLURM_PROCID"))
	if err != nil || k < 0 || k >= len(f.Nodes) || len(f.Epochs) != len(f.Nodes) {
		return cfg, "", errs.New(errs.Invalid, "task %q of a step for %d nodes", env("SLURM_PROCID"), len(f.Nodes)).Hint("`launcher slurm-node` is started by the job's script, not by hand")
	}
	cfg = f.Config
	cfg.Node, cfg.Epoch = f.Nodes[k], f.Epochs[k]
	return cfg, f.ID, nil
}

// nodeBase is a directory of ours on this very machine, in which each node of this user's
// has its own: sockets and spools do not belong on a network's file system.
func nodeBase() (string, error) {
	name := "launcher-" + strconv.Itoa(os.Getuid())
	var last error
	for _, dir := range []string{os.Getenv("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm"} {
		if !filepath.IsAbs(dir) {
			continue
		}
		base := filepath.Join(dir, name)
		if last = ownDirectory(base); last == nil {
			return base, nil
		}
	}
	return "", errs.Wrap(errs.Permission, last, "no directory for this node on %s", ownHost())
}

// ownDirectory makes a directory of ours alone, or makes sure that it is one.
func ownDirectory(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || !st.IsDir() || int(sys.Uid) != os.Getuid() || st.Mode().Perm()&0o077 != 0 {
		return errs.New(errs.Permission, "%s is not a directory of ours alone", dir)
	}
	return nil
}

// sweep removes what nodes of ours left that were killed: nobody holds their lock.
func sweep(base string) {
	locks, _ := filepath.Glob(filepath.Join(base, "*", "node.lock"))
	for _, l := range locks {
		st, err := os.Stat(l)
		if err != nil || time.Since(st.ModTime()) < time.Minute {
			continue // it may be about to be locked
		}
		f, err := os.Open(l)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(filepath.Dir(l))
		}
		f.Close()
	}
}

// grant puts what Slurm granted this node into its configuration, where the pool does not
// say what it has. It gives what is odd about it.
func grant(cfg *wire.NodeConfig, env func(string) string) (note string) {
	k := 0 // our place among the job's nodes
	if hosts, err := hostsOf(env("SLURM_JOB_NODELIST")); err == nil {
		for i, h := range hosts {
			if h == env("SLURMD_NODENAME") {
				k = i
			}
		}
	}
	cpus := perNode(env("SLURM_JOB_CPUS_PER_NODE"), k)
	if mb, _ := strconv.ParseInt(env("SLURM_MEM_PER_NODE"), 10, 64); mb > 0 {
		cfg.Memory = mb << 20
	} else if mb, _ := strconv.ParseInt(env("SLURM_MEM_PER_CPU"), 10, 64); mb > 0 && cpus > 0 {
		cfg.Memory = mb << 20 * int64(cpus)
	}
	if granted := env("SLURM_STEP_GPUS") + env("SLURM_JOB_GPUS") + env("SLURM_GPUS_ON_NODE"); granted != "" && granted != "0" {
		cfg.GPUs = gpuNumbers(env)
	}
	have := usable()
	switch {
	case cpus == 0 || have == 0:
	case have < cpus:
		note = fmt.Sprintf("Slurm granted %d cores here and this step may use %d: ask the site about its TaskPlugin", cpus, have)
	case have > cpus && (cfg.Resources == nil || cfg.Resources.CPU == 0):
		// The site confines nobody to what was granted: keep to it ourselves.
		r := wire.Resources{}
		if cfg.Resources != nil {
			r = *cfg.Resources
		}
		r.CPU = int64(cpus) * wire.Unit
		cfg.Resources = &r
	}
	return note
}

// otherGPUs say for other makers' GPUs what CUDA_VISIBLE_DEVICES does. Each task is given its own
// by that one, which AMD's libraries heed too; what these say of the whole node would stand
// against it, since libraries count within it.
var otherGPUs = []string{"ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"}

// gpuNumbers is how programs know the GPUs that Slurm granted here.
func gpuNumbers(env func(string) string) []int {
	for _, k := range append([]string{"CUDA_VISIBLE_DEVICES"}, otherGPUs...) {
		var out []int
		for w := range strings.SplitSeq(env(k), ",") {
			n, err := strconv.Atoi(strings.TrimSpace(w))
			if err != nil || n < 0 || slices.Contains(out, n) {
				out = nil
				break
			}
			out = append(out, n)
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
}

// perNode reads the k-th value of a list such as 72(x2),36.
func perNode(list string, k int) int {
	for part := range strings.SplitSeq(list, ",") {
		value, times, _ := strings.Cut(part, "(x")
		n, err := strconv.Atoi(value)
		if err != nil {
			return 0
		}
		m, err := strconv.Atoi(strings.TrimSuffix(times, ")"))
		if err != nil {
			m = 1
		}
		if k -= m; k < 0 {
			return n
		}
	}
	return 0
}

// usable is how many cores this process may use.
func usable() int {
	data, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(data)) {
		list, ok := strings.CutPrefix(line, "Cpus_allowed_list:")
		if !ok {
			continue
		}
		return countCores(strings.TrimSpace(list))
	}
	return 0
}

// countCores counts a list such as 0-3,8; 0 = it is none.
func countCores(list string) int {
	n := 0
	for part := range strings.SplitSeq(list, ",") {
		a, b, two := strings.Cut(part, "-")
		lo, err1 := strconv.Atoi(a)
		hi := lo
		var err2 error
		if two {
			hi, err2 = strconv.Atoi(b)
		}
		if err1 != nil || err2 != nil || hi < lo {
			return 0
		}
		n += hi - lo + 1
	}
	return n
}

// lastLines is the end of a log.
func lastLines(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}
