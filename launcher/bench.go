package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// benchRow is one figure, beside the limit it was measured with in the same run.
type benchRow struct {
	Bench  string  `json:"bench"`
	What   string  `json:"what"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Limit  float64 `json:"limit,omitempty"`  // the physical limit or the peer, same unit
	Of     string  `json:"of,omitempty"`     // what the limit is
	Ratio  float64 `json:"ratio,omitempty"`  // value / limit
	Target float64 `json:"target,omitempty"` // ratio to reach; with no limit, or where less is better, the value to reach
	Less   bool    `json:"less,omitempty"`   // less is better
	Steal  float64 `json:"steal,omitempty"`  // share of CPU time the host took, of the run reported
}

// met reports whether the row reaches its target.
func (r benchRow) met() bool {
	switch {
	case r.Less:
		return r.Value <= r.Target
	case r.Limit > 0:
		return r.Ratio >= r.Target
	default:
		return r.Value >= r.Target
	}
}

// benchmark is one of them. This list is the registration point: a part that has figures of
// its own adds a line to benches.
type benchmark struct {
	name, about string
	asked       bool // runs only when it is named
	run         func(ctx context.Context, e *benchEnv, emit func(benchRow)) error
}

func benches() []benchmark {
	return []benchmark{
		{"start", "up of a local cluster to the first output of a run", false, benchStart},
		{"true", "`true` as a task beside the same os/exec call in a loop", false, benchTrue},
		{"idle", "memory and CPU of head, supervisors and agents with nothing to do", false, benchIdle},
		{"collectives", "all-reduce by size, shared and private buffers, Go and Python ranks, beside memcpy", false, benchCollectives},
		{"up-ssh", "up of 32 hosts (sshds on this machine) beside `ssh true`, the binary's copy beside scp; only when named", true, benchSSH},
	}
}

// benchEnv is a private cluster: its own LAUNCHER_HOME, so that nothing else is disturbed.
type benchEnv struct {
	a       *app
	home    string
	spec    string
	binary  string
	up      bool // the private cluster is up
	begun   bool // it has been up
	repeats int
	python  string // interpreter with numpy, "" = none
}

const benchSpec = `version = 1
name = "bench"
[[pool]]
name = "local"
backend = "local"
nodes = 1
`

func newBenchEnv(a *app, repeats int) (*benchEnv, error) {
	bin, err := executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "launcher-bench-")
	if err != nil {
		return nil, errs.Wrap(errs.Permission, err, "no place for the benchmarks' cluster").Hint("set TMPDIR to a directory you can write")
	}
	e := &benchEnv{a: a, home: dir, spec: filepath.Join(dir, "bench.toml"), binary: bin, repeats: repeats}
	if err := os.WriteFile(e.spec, []byte(benchSpec), 0o600); err != nil {
		return nil, errs.Wrap(errs.Exhausted, err, "the benchmarks' spec")
	}
	return e, nil
}

// command is a launcher command on the private cluster.
func (e *benchEnv) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, e.binary, args...)
	c.Env = append(headEnv(e.home, "bench"), "LAUNCHER_BENCH=1")
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 10 * time.Second
	return c
}

// launcher runs a command and gives its output.
func (e *benchEnv) launcher(ctx context.Context, args ...string) ([]byte, error) {
	var stderr strings.Builder
	c := e.command(ctx, args...)
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		return out, errs.New(errs.Unavailable, "launcher %s: %v: %s", strings.Join(args, " "), err, cut(strings.TrimSpace(stderr.String()), 300))
	}
	return out, nil
}

func (e *benchEnv) ensureUp(ctx context.Context) error {
	if e.up {
		return nil
	}
	if _, err := e.launcher(ctx, "up", e.spec); err != nil {
		return err
	}
	e.up, e.begun = true, true
	return nil
}

func (e *benchEnv) down(ctx context.Context) error {
	_, err := e.launcher(ctx, "down", "bench")
	e.up = false
	return err
}

func (e *benchEnv) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var err error
	if e.begun {
		err = e.down(ctx)
	}
	if rerr := os.RemoveAll(e.home); err == nil && rerr != nil {
		err = errs.Wrap(errs.Permission, rerr, "cannot remove %s", e.home)
	}
	return err
}

// maxSteal is the share of CPU time that the host may take from a run that counts.
const maxSteal = 0.03

// median runs f several times and gives the median of its figures; runs in which the host
// took CPU time away are repeated, up to twice as many in all.
func (e *benchEnv) median(ctx context.Context, n int, f func() (float64, error)) (v, steal float64, err error) {
	type run struct{ v, steal float64 }
	var good, all []run
	for i := 0; i < 2*n && len(good) < n; i++ {
		if ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
		s0, t0 := stealTicks()
		v, err := f()
		if err != nil {
			return 0, 0, err
		}
		s1, t1 := stealTicks()
		r := run{v: v}
		if t1 > t0 {
			r.steal = float64(s1-s0) / float64(t1-t0)
		}
		all = append(all, r)
		if r.steal <= maxSteal {
			good = append(good, r)
		}
	}
	if len(good) == 0 {
		good = all // the host is busy throughout: the row says so by its steal
	}
	slices.SortFunc(good, func(a, b run) int {
		switch {
		case a.v < b.v:
			return -1
		case a.v > b.v:
			return 1
		}
		return 0
	})
	m := good[len(good)/2]
	return m.v, m.steal, nil
}

// benchStart measures, from nothing running, `up` and then `run` to its first byte.
func benchStart(ctx context.Context, e *benchEnv, emit func(benchRow)) error {
	first := func() (float64, error) {
		c := e.command(ctx, "run", "--", "echo", "x")
		out, err := c.StdoutPipe()
		if err != nil {
			return 0, errs.Wrap(errs.Exhausted, err, "a pipe")
		}
		t := time.Now()
		if err := c.Start(); err != nil {
			return 0, errs.Wrap(errs.Internal, err, "starting launcher run")
		}
		_, rerr := bufio.NewReader(out).ReadByte()
		d := time.Since(t).Seconds()
		_, _ = io.Copy(io.Discard, out)
		if err := c.Wait(); err != nil || rerr != nil {
			return 0, errs.New(errs.Unavailable, "launcher run: %v", errors.Join(err, rerr))
		}
		return d, nil
	}
	var ups, runs []float64
	total, steal, err := e.median(ctx, e.repeats, func() (float64, error) {
		if e.up {
			if err := e.down(ctx); err != nil {
				return 0, err
			}
		}
		if _, err := e.launcher(ctx, "forget", "--all"); err != nil {
			return 0, err
		}
		t := time.Now()
		if err := e.ensureUp(ctx); err != nil {
			return 0, err
		}
		up := time.Since(t).Seconds()
		run, err := first()
		ups, runs = append(ups, up), append(runs, run)
		return time.Since(t).Seconds(), err
	})
	if err != nil {
		return err
	}
	emit(benchRow{Bench: "start", What: "up, from nothing", Value: mid(ups), Unit: "s"})
	emit(benchRow{Bench: "start", What: "run to its first output, first run", Value: mid(runs), Unit: "s"})
	emit(benchRow{Bench: "start", What: "up and run to first output", Value: total, Unit: "s", Target: 0.3, Less: true, Steal: steal})
	warm, steal, err := e.median(ctx, 2*e.repeats, first)
	if err != nil {
		return err
	}
	bare, _, err := e.median(ctx, 2*e.repeats, func() (float64, error) {
		t := time.Now()
		_, err := e.launcher(ctx, "version")
		return time.Since(t).Seconds(), err
	})
	if err != nil {
		return err
	}
	emit(benchRow{Bench: "start", What: "run to its first output, cluster up", Value: warm, Unit: "s", Limit: bare, Of: "launcher version", Ratio: warm / bare, Less: true, Steal: steal})
	return nil
}

func mid(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return s[len(s)/2]
}

// trueTasks is how many tasks one measurement runs.
const trueTasks = 2000

// benchTrue compares an array of `true` with the same call in a loop with the same pipes,
// as many at a time as the cluster has cores.
func benchTrue(ctx context.Context, e *benchEnv, emit func(benchRow)) error {
	if err := e.ensureUp(ctx); err != nil {
		return err
	}
	nodes, err := e.cores(ctx)
	if err != nil {
		return err
	}
	var loops []float64
	v, steal, err := e.median(ctx, e.repeats, func() (float64, error) {
		// The loop runs before each array, so that both see the same machine.
		l, err := execLoop(ctx, nodes, trueTasks/2)
		if err != nil {
			return 0, err
		}
		loops = append(loops, l)
		return e.arrayRate(ctx)
	})
	if err != nil {
		return err
	}
	limit := mid(loops)
	emit(benchRow{Bench: "true", What: fmt.Sprintf("`true` as a task, %d at a time", nodes), Value: v, Unit: "tasks/s", Limit: limit,
		Of: "os/exec loop, same pipes, as many at a time", Ratio: v / limit, Target: 0.9, Steal: steal})
	return nil
}

// cores is how many tasks of one core run at a time.
func (e *benchEnv) cores(ctx context.Context) (int, error) {
	c, err := e.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	var i wire.ClusterInfo
	if err := c.call(ctx, wire.MsgInfo, wire.InfoRequest{}, &i); err != nil {
		return 0, err
	}
	return max(1, int(i.Total.CPU/wire.Unit)), nil
}

func (e *benchEnv) connect(ctx context.Context) (*client, error) {
	dir := filepath.Join(e.home, "clusters", "bench")
	return dial(ctx, target{name: "bench", dir: dir, sock: filepath.Join(dir, "head.sock"), up: true})
}

// arrayRate runs an array of `true` and gives tasks per second from its acceptance to its end.
func (e *benchEnv) arrayRate(ctx context.Context) (float64, error) {
	dir := filepath.Join(e.home, "clusters", "bench")
	t := target{name: "bench", dir: dir, sock: filepath.Join(dir, "head.sock"), up: true}
	spec := wire.JobSpec{Name: "true", Kind: wire.KindArray, Command: []string{"true"}, Dir: "/", Ranks: 1, Grace: int64(defaultGrace),
		Resources: wire.Resources{CPU: wire.Unit}, Array: &wire.ArraySpec{Ranges: []wire.Range{{From: 0, To: trueTasks}}}}
	c, id, err := e.a.submit(ctx, t, spec)
	if err != nil {
		return 0, err
	}
	f := &follower{a: e.a, target: t, job: id, task: -1, rank: -1}
	j, err := f.run(ctx, c)
	if err != nil {
		return 0, err
	}
	if j.State != wire.StateDone {
		return 0, errs.New(errs.Unavailable, "the array ended %s: %s", j.State, j.Cause)
	}
	return trueTasks / time.Duration(j.Ended-j.Submitted).Seconds(), nil
}

// execLoop runs `true` n times with pipes for its output, width at a time, and gives runs
// per second.
func execLoop(ctx context.Context, width, n int) (float64, error) {
	began := time.Now()
	next := make(chan struct{}, n)
	for range n {
		next <- struct{}{}
	}
	close(next)
	fails := make(chan error, width)
	var wg sync.WaitGroup
	for range width {
		wg.Go(func() {
			for range next {
				c := exec.CommandContext(ctx, "true")
				out, err1 := c.StdoutPipe()
				serr, err2 := c.StderrPipe()
				err := errors.Join(err1, err2)
				if err == nil {
					err = c.Start()
				}
				if err == nil {
					_, _ = io.Copy(io.Discard, out)
					_, _ = io.Copy(io.Discard, serr)
					err = c.Wait()
				}
				if err != nil {
					fails <- err
					return
				}
			}
		})
	}
	wg.Wait()
	d := time.Since(began)
	select {
	case err := <-fails:
		return 0, errs.Wrap(errs.Unavailable, err, "the os/exec loop")
	default:
	}
	return float64(n) / d.Seconds(), nil
}

// idleTime is how long the cluster is watched doing nothing.
const idleTime = 3 * time.Second

// benchIdle measures what a cluster takes when it does nothing.
func benchIdle(ctx context.Context, e *benchEnv, emit func(benchRow)) error {
	if runtime.GOOS != "linux" {
		return errs.New(errs.Unbuilt, "the idle benchmark reads /proc: only on Linux")
	}
	if err := e.ensureUp(ctx); err != nil {
		return err
	}
	select { // let what just ran come to rest
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(2 * time.Second):
	}
	t := target{name: "bench", dir: filepath.Join(e.home, "clusters", "bench")}
	procs := nodeProcesses(t)
	cpu := func() (s float64) {
		for _, p := range procs {
			s += cpuSeconds(p.pid)
		}
		return s
	}
	before := cpu()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idleTime):
	}
	used := (cpu() - before) / idleTime.Seconds()
	var total int64
	for _, p := range procs {
		m := residentBytes(p.pid)
		total += m
		emit(benchRow{Bench: "idle", What: "resident, " + p.kind, Value: float64(m) / 1e6, Unit: "MB"})
	}
	emit(benchRow{Bench: "idle", What: "resident, all, shared pages divided", Value: float64(total) / 1e6, Unit: "MB", Target: 60, Less: true})
	emit(benchRow{Bench: "idle", What: "CPU", Value: used * 100, Unit: "% of a core", Target: 1, Less: true})
	return nil
}
