package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"launcher/agent/core"
	"launcher/agent/proc"
	"launcher/agent/spool"
	"launcher/agent/supervisor"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/bundle"
)

// spawners is how many starts are in flight to the supervisor at a time.
const spawners = 4

// starter starts processes, in the order in which the core wants them.
type starter struct {
	a *agent

	mu     sync.Mutex
	queue  []core.Spawn           // guarded by mu
	places map[wire.Proc]struct{} // processes with files of their own; guarded by mu
	more   chan struct{}
	empty  string // a file with {}: the parameters of what has none
}

func newStarter(a *agent) *starter {
	return &starter{a: a, places: map[wire.Proc]struct{}{}, more: make(chan struct{}, spawners)}
}

func (s *starter) order(e core.Spawn) {
	s.mu.Lock()
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
}

func (s *starter) next() (core.Spawn, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return core.Spawn{}, false
	}
	e := s.queue[0]
	s.queue[0] = core.Spawn{}
	if s.queue = s.queue[1:]; len(s.queue) == 0 {
		s.queue = nil
	}
	return e, true
}

func (s *starter) run(ctx context.Context) error {
	tasks := filepath.Join(s.a.cfg.Dir, "tasks")
	s.empty = filepath.Join(tasks, "params-none.json")
	err := os.MkdirAll(tasks, 0o700)
	if err == nil {
		err = os.WriteFile(s.empty, []byte("{}\n"), 0o600)
	}
	if err != nil {
		return diskErr(err, "the directory of node %s", s.a.cfg.Node)
	}
	s.takeOver(tasks)
	var g errgroup.Group
	for range spawners {
		g.Go(func() error {
			for {
				e, ok := s.next()
				if ok {
					s.start(ctx, e)
					continue
				}
				select {
				case <-s.more:
				case <-ctx.Done():
					return nil
				}
			}
		})
	}
	return g.Wait()
}

// takeOver learns which processes of earlier agents have files.
func (s *starter) takeOver(tasks string) {
	entries, err := os.ReadDir(tasks)
	if err != nil {
		return // then nothing is cleaned before the node's end
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		var p wire.Proc
		if n, err := fmt.Sscanf(e.Name(), "%d-%d-%d-%d", &p.Job, &p.Index, &p.Attempt, &p.Rank); n == 4 && err == nil && e.IsDir() {
			s.places[p] = struct{}{}
		}
	}
}

// start starts one process and says what became of it.
func (s *starter) start(ctx context.Context, e core.Spawn) {
	started, err := s.try(ctx, &e)
	if ctx.Err() != nil {
		return // the next agent starts it, or finds it started
	}
	if err == nil {
		s.a.groups.started(e.Proc, started.PID)
		s.a.events.push(core.ProcStarted{Proc: e.Proc, PID: started.PID, At: started.At})
		return
	}
	if s.a.lostSupervisor(ctx) {
		return
	}
	code := int32(-1)
	if se, ok := errors.AsType[*proc.StartError](err); ok {
		code = se.Code()
	} else if errs.Is(err, errs.NotFound) {
		code = 127
	}
	w := errs.ToWire(err)
	w.Msg = strings.TrimPrefix(w.Msg, "starting "+e.Proc.String()+": ")
	if !strings.Contains(w.Msg, string(s.a.cfg.Node)) {
		w.Msg = "node " + string(s.a.cfg.Node) + ": " + w.Msg
	}
	s.a.outputs.failed(e.Proc)
	s.a.events.push(core.ProcFailed{Proc: e.Proc, Code: code, Err: w})
	s.clean(e.Proc)
}

// lostSupervisor reports whether a start failed because the supervisor is gone. Then the
// node is lost, and the head is to hear no other reason why its work did not go well:
// work is run again after the loss of its node, not after a failure. What failed first may
// be anything that was killed for the same reason, so only the supervisor is asked.
func (a *agent) lostSupervisor(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, signalBound)
	defer cancel()
	if !errs.Is(a.super.Alive(ctx), errs.Lost) {
		return false
	}
	a.log.Warn("nothing is started: the supervisor is gone")
	return true
}

func (s *starter) try(ctx context.Context, e *core.Spawn) (started supervisor.Started, err error) {
	if len(e.Argv) == 0 {
		return started, errs.New(errs.Invalid, "there is no command to run")
	}
	if e.Dir, err = s.a.trees.workdir(ctx, e.Job, e.Proc); err != nil {
		return started, err
	}
	if e.Checkpoint, err = s.a.trees.checkpoint(ctx, e.Job, e.Checkpoint, e.Proc.Rank); err != nil {
		return started, err
	}
	more, err := s.files(e)
	if err != nil {
		return started, err
	}
	env, err := s.a.env.of(ctx, e, more)
	if err != nil {
		return started, err
	}
	o := supervisor.Order{Proc: e.Proc, Argv: e.Argv, Env: env, Dir: e.Dir, CPUs: e.CPUs}
	if o.CPUs == nil {
		o.CPUs = s.a.cfg.CPUs
	}
	outR, outW, err := spool.Pipe()
	if err != nil {
		return started, err
	}
	defer outW.Close()
	errR, errW, err := spool.Pipe()
	if err != nil {
		outR.Close()
		return started, err
	}
	defer errW.Close()
	o.Files = []*os.File{nil, outW, errW}
	o.Keep = map[string]*os.File{spool.FDName(e.Proc, spool.Stdout): outR, spool.FDName(e.Proc, spool.Stderr): errR}
	started, err = s.a.super.Spawn(ctx, o)
	if err != nil || started.Known {
		// When it is known, an earlier agent started it: its pipes were handed over.
		outR.Close()
		errR.Close()
		return started, err
	}
	if err := s.a.spool.Add(e.Proc, outR, errR); err != nil {
		s.a.log.Error("output cannot be spooled", "proc", e.Proc, "err", err)
	}
	return started, nil
}

// place is the directory of a process's own files.
func (a *agent) place(p wire.Proc) string {
	var b []byte
	for i, n := range []uint32{uint32(p.Job), p.Index, uint32(p.Attempt), p.Rank} {
		if i > 0 {
			b = append(b, '-')
		}
		b = strconv.AppendUint(b, uint64(n), 10)
	}
	return filepath.Join(a.cfg.Dir, "tasks", string(b))
}

// files makes what a process finds on disk, and gives the variables that name it. The
// elements of an array share one empty parameter file and make their checkpoint
// directory themselves if they want one; they come in thousands.
func (s *starter) files(e *core.Spawn) (vars []string, err error) {
	dir := s.a.place(e.Proc)
	params, checkpoints := s.empty, filepath.Join(dir, "checkpoint")
	if e.Job.Spec.Kind != wire.KindArray || e.Params != nil || e.Hostfile != nil || e.Dir != e.Job.Spec.Dir {
		s.mu.Lock()
		s.places[e.Proc] = struct{}{}
		s.mu.Unlock()
		if err = os.MkdirAll(checkpoints, 0o700); err == nil && e.Params != nil {
			params = filepath.Join(dir, "params.json")
			err = os.WriteFile(params, e.Params, 0o600)
		}
		if err == nil && e.Hostfile != nil {
			vars = append(vars, "LAUNCHER_HOSTFILE="+filepath.Join(dir, "hostfile"))
			err = os.WriteFile(filepath.Join(dir, "hostfile"), e.Hostfile, 0o600)
		}
		if err != nil {
			return nil, diskErr(err, "the process's directory on node %s", s.a.cfg.Node)
		}
	}
	return append(vars, "LAUNCHER_PARAMS="+params, "LAUNCHER_CHECKPOINT_OUT="+checkpoints,
		"LAUNCHER_CHECKPOINT_IN="+bundle.Part(e.Checkpoint, e.Proc.Rank)), nil
}

// has reports whether processes of a job have files here.
func (s *starter) has(job wire.JobID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.places {
		if p.Job == job {
			return true
		}
	}
	return false
}

// clean removes the files of a process that has ended.
func (s *starter) clean(p wire.Proc) {
	s.mu.Lock()
	_, ok := s.places[p]
	delete(s.places, p)
	s.mu.Unlock()
	if ok {
		s.a.wg.Go(func() { _ = os.RemoveAll(s.a.place(p)) })
	}
}

// diskErr names a full disk as such.
func diskErr(err error, format string, args ...any) error {
	return errs.Wrap(diskKind(err), err, format, args...).Hint("make room on that file system, or check its quota and permissions")
}
