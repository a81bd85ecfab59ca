package workers

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/proc"
	"launcher/agent/supervisor"
	"launcher/internal/errs"
	"launcher/wire"
)

// Supervisor is what is needed of one; *supervisor.Client is it.
type Supervisor interface {
	Spawn(ctx context.Context, o supervisor.Order) (supervisor.Started, error)
	Signal(ctx context.Context, p wire.Proc, sig syscall.Signal, group bool) error
	StoreFDs(ctx context.Context, fds map[string]*os.File) error
	DropFD(names ...string) error
	Release(ps ...wire.Proc) error
	Restarts() uint32
}

// Config of a Pool. Its functions are called by several goroutines, and must not block.
type Config struct {
	Super Supervisor
	Log   *slog.Logger
	Node  wire.NodeID
	Dir   string // for JOB.log
	// Output takes whole lines of a worker, and how many lines before them were too fast
	// for their log file.
	Output func(w Worker, stream uint8, text []byte)
	// Started and Failed answer Start. Ended comes for each worker that was Started.
	Started func(id uint32, pid int)
	Failed  func(id uint32, err error)
	Ended   func(id uint32, end End)
}

// Worker is what is known of one.
type Worker struct {
	ID   uint32
	PID  int
	Job  string
	Name string
}

// End is how a worker ended.
type End struct {
	Known  bool // the rest is known
	Code   int32
	Signal int32
}

func (e End) String() string {
	switch {
	case !e.Known:
		return "it is gone"
	case e.Signal != 0:
		return "it was killed by signal " + strconv.Itoa(int(e.Signal)) + " (" + unix.SignalName(syscall.Signal(e.Signal)) + ")"
	}
	return "it exited with code " + strconv.Itoa(int(e.Code))
}

// Spec is a worker to start.
type Spec struct {
	ID      uint32
	Job     string
	Name    string
	Program string            // interpreter or binary
	Python  bool              // forked from a template of Program
	Env     []string          // all of it, the same for all of the job's with these options
	Set     map[string]string // of this worker
	Dir     string
	CPUs    []int // nil = not bound
	Socket  *os.File
}

// Pool is the workers of a node.
type Pool struct {
	c   Config
	ctx context.Context
	end context.CancelFunc
	wg  sync.WaitGroup

	mu        sync.Mutex
	seq       uint32                  // of processes started by the supervisor; guarded by mu
	templates map[string]*template    // by key; guarded by mu
	workers   map[uint32]*worker      // guarded by mu
	pids      map[int]*worker         // guarded by mu
	procs     map[wire.Proc]process   // guarded by mu
	dead      map[int]supervisor.Exit // orphans that ended before they were known; guarded by mu
	logs      map[string]*logFile     // by job; guarded by mu
	closed    bool                    // guarded by mu
}

// process is what the supervisor started for us: a template or a worker.
type process interface{ exited(supervisor.Exit) }

// worker is one that runs.
type worker struct {
	p     *Pool
	w     Worker
	start uint64    // of its process, so that its pid is not taken for another's
	proc  wire.Proc // when the supervisor started it
	kept  []string
	from  *template
	early *End           // its end, while its start was not known; guarded by p.mu
	outs  sync.WaitGroup // its output
}

// maxDead bounds what is remembered of orphans that nobody knows.
const maxDead = 4096

// New makes a Pool; Take takes up what an earlier agent left.
func New(c Config) *Pool {
	p := &Pool{c: c, templates: map[string]*template{}, workers: map[uint32]*worker{}, pids: map[int]*worker{}, procs: map[wire.Proc]process{},
		dead: map[int]supervisor.Exit{}, logs: map[string]*logFile{}}
	p.ctx, p.end = context.WithCancel(context.Background())
	p.wg.Go(p.tidy)
	return p
}

// Ours reports whether a process of the supervisor's table was started by a Pool: the
// head's jobs count from 1.
func Ours(p wire.Proc) bool { return p.Job == 0 && p != wire.Proc{} }

// nextProc names a process; no other life of the agent gives the same. mu is held.
func (p *Pool) nextProc() wire.Proc {
	p.seq++
	return procOf(p.c.Super.Restarts()<<20 + p.seq)
}

func procOf(n uint32) wire.Proc {
	return wire.Proc{Try: wire.Try{Task: wire.Task{Index: n}, Attempt: 1}}
}

// procVar names a process for the sweeper.
func procVar(p wire.Proc) string { return "LAUNCHER_PROC=" + p.String() }

// Start starts a worker; Started or Failed tells what became of it. It takes s.Socket over.
func (p *Pool) Start(s Spec) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		s.Socket.Close()
		return
	}
	if s.Python {
		p.order(s)
		return
	}
	p.wg.Go(func() { p.spawn(s, []string{s.Program}) })
}

// Warm starts what Python workers such as s are forked from; s needs no Socket.
func (p *Pool) Warm(s Spec) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.template(s)
	}
}

// spawn has the supervisor start a worker's program.
func (p *Pool) spawn(s Spec, argv []string) {
	defer s.Socket.Close()
	outs, err := newOutputs()
	if err != nil {
		p.c.Failed(s.ID, err)
		return
	}
	defer outs.closeWrite()
	p.mu.Lock()
	id := p.nextProc()
	p.mu.Unlock()
	env := append([]string(nil), s.Env...)
	for k, v := range s.Set {
		env = append(env, k+"="+v)
	}
	w := &worker{p: p, w: Worker{ID: s.ID, Job: s.Job, Name: s.Name}, proc: id}
	p.mu.Lock()
	p.procs[id] = w
	p.mu.Unlock()
	got, err := p.c.Super.Spawn(p.ctx, supervisor.Order{Proc: id, Argv: argv, Env: append(env, procVar(id)), Dir: s.Dir, CPUs: s.CPUs,
		Files: []*os.File{nil, outs.outW, outs.errW, s.Socket}})
	if err != nil {
		p.mu.Lock()
		delete(p.procs, id)
		p.mu.Unlock()
		outs.closeRead()
		p.c.Failed(s.ID, errs.Wrap(errs.Unknown, err, "a worker cannot be started on node %s", p.c.Node))
		return
	}
	w.w.PID = got.PID
	p.started(w, outs)
}

// started enters a worker that has just been started, and reads what it prints.
func (p *Pool) started(w *worker, outs *outputs) {
	if st, err := proc.ReadStat(w.w.PID); err == nil {
		w.start = st.Start
	}
	w.kept = []string{w.keptName(1), w.keptName(2)}
	_ = p.c.Super.StoreFDs(p.ctx, map[string]*os.File{w.kept[0]: outs.outR, w.kept[1]: outs.errR})
	p.mu.Lock()
	end, died := p.dead[w.w.PID]
	delete(p.dead, w.w.PID)
	if p.closed {
		p.mu.Unlock()
		outs.closeRead()
		return
	}
	p.workers[w.w.ID] = w
	if !died {
		p.pids[w.w.PID] = w
	}
	p.follow(w, outs)
	early := w.early
	p.mu.Unlock()
	p.c.Started(w.w.ID, w.w.PID)
	switch {
	case died:
		w.exited(end)
	case early != nil:
		w.gone(*early)
	}
}

// keptName is the name of a pipe at the supervisor: what the next agent must know.
func (w *worker) keptName(stream int) string {
	return strings.Join([]string{"worker", strconv.FormatUint(uint64(w.w.ID), 10), strconv.Itoa(w.w.PID), strconv.FormatUint(w.start, 10), strconv.FormatUint(uint64(w.proc.Index), 10),
		strconv.Itoa(stream), w.w.Job, w.w.Name}, "\x00")
}

// exited takes the end of a worker.
func (w *worker) exited(x supervisor.Exit) { w.gone(End{Known: true, Code: x.Code, Signal: x.Signal}) }

func (w *worker) gone(end End) {
	p := w.p
	p.mu.Lock()
	if p.workers[w.w.ID] != w { // its end came before the answer to its start, or twice
		w.early = &end
		p.mu.Unlock()
		return
	}
	delete(p.workers, w.w.ID)
	delete(p.pids, w.w.PID)
	delete(p.procs, w.proc)
	p.mu.Unlock()
	// What it started itself goes with it; its group's number is free only when all are gone.
	_ = unix.Kill(-w.w.PID, unix.SIGKILL)
	if w.from != nil {
		w.from.released()
	}
	p.c.Ended(w.w.ID, end)
	p.goes(func() {
		w.outs.Wait()
		_ = p.c.Super.DropFD(w.kept...)
		if w.proc != (wire.Proc{}) {
			_ = p.c.Super.Release(w.proc)
		}
	})
}

// goes runs f in a goroutine that Close waits for.
func (p *Pool) goes(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.wg.Go(f)
	}
}

// Stray takes the end of an orphan of the supervisor's.
func (p *Pool) Stray(x supervisor.Exit) {
	p.mu.Lock()
	w := p.pids[x.PID]
	if w == nil {
		if len(p.dead) >= maxDead {
			clear(p.dead)
		}
		p.dead[x.PID] = x
	}
	p.mu.Unlock()
	if w != nil {
		w.exited(x)
	}
}

// Exited takes the end of a process that is Ours.
func (p *Pool) Exited(x supervisor.Exit) {
	p.mu.Lock()
	o := p.procs[x.Proc]
	p.mu.Unlock()
	if o != nil {
		o.exited(x)
	} else {
		_ = p.c.Super.Release(x.Proc)
	}
}

// Signal sends a signal to a worker and what it started.
func (p *Pool) Signal(id uint32, sig syscall.Signal) {
	p.mu.Lock()
	w := p.workers[id]
	p.mu.Unlock()
	if w == nil {
		return
	}
	if st, err := proc.ReadStat(w.w.PID); err != nil || w.start != 0 && st.Start != w.start {
		return // its end is on its way
	}
	if unix.Kill(-w.w.PID, sig) != nil { // before its setsid it has no group
		_ = unix.Kill(w.w.PID, sig)
	}
}

// Interrupt sends SIGINT to a worker, and not to what it started.
func (p *Pool) Interrupt(id uint32) {
	p.mu.Lock()
	w := p.workers[id]
	p.mu.Unlock()
	if w == nil {
		return
	}
	if st, err := proc.ReadStat(w.w.PID); err == nil && st.Start == w.start {
		_ = unix.Kill(w.w.PID, unix.SIGINT)
	}
}

// Of gives what is known of a worker.
func (p *Pool) Of(id uint32) (Worker, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.workers[id]; w != nil {
		return w.w, true
	}
	return Worker{}, false
}

// Jobs are those that have workers or templates here.
func (p *Pool) Jobs() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, w := range p.workers {
		out = append(out, w.w.Job)
	}
	for _, t := range p.templates {
		out = append(out, t.job)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// EndJob ends the workers and templates of a job.
func (p *Pool) EndJob(job string) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	var ids []uint32
	for id, w := range p.workers {
		if w.w.Job == job {
			ids = append(ids, id)
		}
	}
	for key, t := range p.templates {
		if t.job == job {
			delete(p.templates, key)
			p.wg.Go(t.close)
		}
	}
	log := p.logs[job]
	delete(p.logs, job)
	p.mu.Unlock()
	if log != nil {
		log.end()
	}
	for _, id := range ids {
		p.Signal(id, unix.SIGKILL)
	}
}

// Close ends all that this process does for workers; they themselves live on.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	templates := slices.Collect(maps.Values(p.templates))
	logs := slices.Collect(maps.Values(p.logs))
	p.mu.Unlock()
	p.end()
	for _, t := range templates {
		<-t.ready
		if t.sock != nil {
			_ = t.sock.Close()
		}
	}
	p.wg.Wait()
	for _, l := range logs {
		l.end()
	}
}

// Take takes up what an earlier agent left with the supervisor: templates, and workers,
// whose ends are told by Ended as if they had been started here. It gives the
// descriptors that are not its own.
func (p *Pool) Take(fds map[string]*os.File) (rest map[string]*os.File) {
	rest = map[string]*os.File{}
	var gone []*worker
	p.mu.Lock()
	for name, f := range fds {
		part := strings.Split(name, "\x00")
		switch {
		case part[0] == "worker" && len(part) == 8:
			if w := p.takeWorker(part, f); w != nil {
				gone = append(gone, w)
			}
		case part[0] == "template" && len(part) == 4:
			p.takeTemplate(name, part, f)
		default:
			rest[name] = f
		}
	}
	p.mu.Unlock()
	for _, w := range gone {
		w.gone(End{})
	}
	return rest
}

// takeWorker takes one of a worker's pipes up; the result is a worker that has ended
// meanwhile. mu is held.
func (p *Pool) takeWorker(part []string, f *os.File) (ended *worker) {
	id, _ := strconv.ParseUint(part[1], 10, 32)
	pid, _ := strconv.Atoi(part[2])
	start, _ := strconv.ParseUint(part[3], 10, 64)
	stream, _ := strconv.Atoi(part[5])
	w := p.workers[uint32(id)]
	if w == nil {
		w = &worker{p: p, w: Worker{ID: uint32(id), PID: pid, Job: part[6], Name: part[7]}, start: start}
		p.workers[w.w.ID] = w
		if n, _ := strconv.ParseUint(part[4], 10, 32); n != 0 {
			w.proc = procOf(uint32(n))
			p.procs[w.proc] = w
		} else if st, err := proc.ReadStat(pid); err != nil || st.Start != start || st.State == 'Z' {
			ended = w
		} else {
			p.pids[pid] = w
		}
	}
	w.kept = append(w.kept, strings.Join(part, "\x00"))
	p.read(w, uint8(stream), f)
	return ended
}

// patience is how long a template may take to be ready, and an order to be answered.
const patience = 60 * time.Second
