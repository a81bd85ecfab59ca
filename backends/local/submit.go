package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
)

// plan is one node that is to be started.
type plan struct {
	rec   record
	cfg   wire.NodeConfig
	share string // what it gets of the machine, for people
}

// plan divides the machine among the pool's nodes and says what each is started with.
func (b *Backend) plan(r backends.Request) ([]plan, error) {
	slots, err := nodesOf(r.Options)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "pool %s: nodes", r.Pool)
	}
	cores := usableCores()
	if slots > len(cores) && r.Resources == nil {
		return nil, errs.New(errs.Invalid, "pool %s: %s", r.Pool, tooMany(slots))
	}
	home := r.Home
	if home == "" {
		home = b.home
	}
	if home, err = filepath.Abs(home); err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "the state directory")
	}
	memory := usableMemory()
	var out []plan
	for i, id := range r.Nodes {
		slot := slotOf(id, slots)
		p := plan{
			rec: record{V: 1, Dir: b.nodesDir(home, r.Cluster), Token: r.Token, Node: id, Epoch: r.Epochs[i]},
			cfg: wire.NodeConfig{Cluster: r.Cluster, Node: id, Epoch: r.Epochs[i], Pool: r.Pool, Token: r.Token,
				Addrs: r.Join.Addrs, CA: r.Join.CA, JoinKey: r.Join.Key,
				Dir: filepath.Join(b.nodesDir(home, r.Cluster), string(id)), CacheDir: filepath.Join(home, "cache"),
				Resources: r.Resources, Labels: r.Labels, Share: r.Share, Grace: r.Grace, ObjectMemory: r.Memory, Spill: r.Spill,
				Ports: r.Ports, Interface: r.Interface, CertLife: r.CertLife,
				Setup: r.Setup, Env: r.Env, Python: r.Python, Container: r.Container},
			share: "the whole machine",
		}
		if slots > 1 {
			p.cfg.Slot, p.cfg.Slots = slot, slots
			p.cfg.CPUs, p.rec.Why = shareOf(cores, slot, slots)
			p.cfg.Memory = memory / int64(slots)
			p.share = fmt.Sprintf("slot %d of %d, cores %s of %d, memory %s", slot, slots, list(p.cfg.CPUs), len(cores), wire.Bytes(p.cfg.Memory))
			if p.rec.Why != "" {
				p.share += "; " + p.rec.Why
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// slotOf is a node's place among the pool's: its number, as POOL-NUMBER.
func slotOf(id wire.NodeID, slots int) int {
	s := string(id)
	n, err := strconv.ParseUint(s[strings.LastIndexByte(s, '-')+1:], 10, 31)
	if err != nil {
		return 0
	}
	return int(n) % slots
}

// shareOf gives slot its cores: runs of neighbours, disjoint while there are enough.
func shareOf(cores []int, slot, slots int) (own []int, why string) {
	n := len(cores)
	if slots <= n {
		return cores[slot*n/slots : (slot+1)*n/slots], ""
	}
	core := slot * n / slots
	with := 0
	for s := range slots {
		if s != slot && s*n/slots == core {
			with++
		}
	}
	if with > 0 {
		why = fmt.Sprintf("shares core %d with %s", cores[core], plural(with, "other node"))
	}
	return cores[core : core+1], why
}

func list(cores []int) string {
	s := make([]string, len(cores))
	for i, c := range cores {
		s[i] = strconv.Itoa(c)
	}
	return strings.Join(s, ",")
}

// describe shows a node's configuration, secrets as their place.
func (p plan) describe() string {
	c := p.cfg
	key := "(one-use join key, made by the head when it submits; never shown)"
	ca := "(the cluster's certificate, ca.crt)"
	addrs := c.Addrs
	if len(addrs) == 0 {
		addrs = []string{"(the head's address, known once it listens)"}
	}
	m := map[string]any{"cluster": c.Cluster, "node": c.Node, "epoch": c.Epoch, "pool": c.Pool, "token": c.Token, "addrs": addrs, "ca": ca,
		"join_key": key, "dir": c.Dir, "cache": c.CacheDir, "share": c.Share}
	set := func(k string, v any, zero bool) {
		if !zero {
			m[k] = v
		}
	}
	set("cpus", c.CPUs, c.CPUs == nil)
	set("memory", wire.Bytes(c.Memory), c.Memory == 0)
	set("labels", c.Labels, len(c.Labels) == 0)
	set("grace", time.Duration(c.Grace).String(), c.Grace == 0)
	set("object_memory", c.ObjectMemory, c.ObjectMemory == "")
	set("spill", c.Spill, c.Spill == "")
	set("ports", c.Ports, c.Ports == "")
	set("interface", c.Interface, c.Interface == "")
	set("slot", fmt.Sprintf("%d of %d", c.Slot, c.Slots), c.Slots == 0)
	if c.Resources != nil {
		m["resources"] = c.Resources.String()
	}
	b, _ := json.MarshalIndent(m, "#   ", "  ")
	return "#   " + string(b)
}

// Submit starts the nodes of r that do not run yet.
func (b *Backend) Submit(ctx context.Context, r backends.Request) ([]backends.Alloc, error) {
	if !canStart {
		return nil, errs.New(errs.Unbuilt, "nodes run on Linux, and this machine is not").
			Hint("give the pool another backend, such as ssh to a Linux machine")
	}
	plans, err := b.plan(r)
	if err != nil {
		return nil, err
	}
	b.starting.Lock() // of two calls with one token the second must see what the first made
	defer b.starting.Unlock()
	dir := plans[0].rec.Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, diskError(err, dir)
	}
	known, err := readRecords(dir)
	if err != nil {
		return nil, err
	}
	var out []backends.Alloc
	var started []record
	for _, p := range plans {
		i := slices.IndexFunc(known, func(k record) bool {
			return k.Token == r.Token && k.Node == p.rec.Node && k.Epoch == p.rec.Epoch && k.PID > 0
		})
		if i >= 0 {
			out = append(out, known[i].alloc())
			continue
		}
		err := b.endOlder(ctx, known, p.rec)
		if err == nil {
			err = b.start(ctx, r.Binary, &p)
		}
		if err != nil {
			b.undo(started)
			return nil, errs.Wrap(errs.Unknown, err, "node %s", p.rec.Node)
		}
		started = append(started, p.rec)
		out = append(out, p.rec.alloc())
	}
	return out, nil
}

// endOlder makes sure that earlier lives of a node are over before a new one begins: they
// would hold its directory and its cores.
func (b *Backend) endOlder(ctx context.Context, known []record, next record) error {
	var old []record
	for _, k := range known {
		if k.Node != next.Node || k.Epoch >= next.Epoch || k.PID == 0 {
			continue
		}
		if _, ended := k.readEnd(); ended && len(k.marked()) == 0 {
			continue
		}
		if err := k.markStopped(); err != nil {
			return err
		}
		k.signal(true)
		old = append(old, k)
	}
	if err := b.awaitEnds(ctx, old, b.killBound/4); err != nil {
		return errs.Wrap(errs.Unknown, err, "its earlier life does not end")
	}
	return nil
}

// undo ends what a failed Submit had started.
func (b *Backend) undo(started []record) {
	ctx, cancel := context.WithTimeout(context.Background(), b.killBound)
	defer cancel()
	for _, r := range started {
		if r.markStopped() == nil {
			r.signal(true)
		}
	}
	b.awaitEnds(ctx, started, b.killBound/4) // its failure would hide why the submission failed
	for _, r := range started {
		_ = r.remove()
	}
}

// start starts one node, in two steps (see the package's text).
func (b *Backend) start(ctx context.Context, binary string, p *plan) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.MkdirAll(p.cfg.Dir, 0o700); err != nil {
		return diskError(err, p.cfg.Dir)
	}
	logPath := filepath.Join(p.cfg.Dir, "agent.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return diskError(err, logPath)
	}
	defer log.Close()
	in, out, err := os.Pipe()
	if err != nil {
		return errs.Wrap(errs.Exhausted, err, "a pipe for its configuration")
	}
	defer out.Close()
	cmd := exec.Command(binary, "node")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, log, log
	cmd.Dir = "/"
	cmd.Env = append(environment(p.rec.mark()), "LAUNCHER_CLUSTER="+p.cfg.Cluster) // `down` finds by it what a dead head left
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	in.Close()
	if err != nil {
		k := errs.Unavailable // out of processes or memory: later there may be more
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			k = errs.NotFound
		}
		return errs.Wrap(k, err, "starting %s", binary)
	}
	p.rec.identify(cmd.Process.Pid)
	b.reap(cmd, p.rec)
	if err := p.rec.write(); err != nil {
		out.Close() // it reads nothing and ends
		return err
	}
	out.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := out.Write(wire.Marshal(p.cfg)); err != nil {
		cmd.Process.Kill()
		os.Remove(p.rec.path(".json"))
		return errs.Wrap(errs.Unavailable, err, "the new process does not take its configuration").Hint("see %s", logPath)
	}
	return nil
}

// reap waits for our child and writes its exit status down. The wait lasts as long as the
// node: it ends with the node or with this process, whichever is first.
func (b *Backend) reap(cmd *exec.Cmd, r record) {
	ended := make(chan struct{})
	b.mu.Lock()
	b.children[r.key()] = ended
	b.mu.Unlock()
	go func() {
		cmd.Wait()
		r.writeEnd(r.verdict(cmd.ProcessState))
		b.mu.Lock()
		delete(b.children, r.key())
		b.mu.Unlock()
		close(ended)
	}()
}

// environment is ours without what an enclosing run of launcher set, and with the mark.
func environment(mark string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "LAUNCHER_") || strings.HasPrefix(kv, "LAUNCHER_HOME=") {
			env = append(env, kv)
		}
	}
	return append(env, markVar+"="+mark)
}

func diskError(err error, path string) error {
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return errs.Wrap(errs.Permission, err, "cannot write the state directory").Hint("set LAUNCHER_HOME to a directory of yours")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errs.Wrap(errs.Exhausted, err, "no room in the state directory").Hint("make room there, or set LAUNCHER_HOME to a place with more")
	}
	return errs.Wrap(errs.Internal, err, "%s", path)
}
