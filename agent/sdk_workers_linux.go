package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"launcher/agent/tasks"
	"launcher/agent/workers"
	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire"
	"launcher/wire/sdk"
)

const (
	// endWait is how long the news of a worker's end may be behind its socket's.
	endWait = 300 * time.Millisecond
	// exitBound is how long a worker that was told to end may take.
	exitBound = 5 * time.Second
)

func newWorkers(a *agent) *workers.Pool {
	s := a.sdk
	return workers.New(workers.Config{Super: a.super, Log: a.log, Node: a.cfg.Node, Dir: filepath.Join(a.cfg.Dir, "workers"),
		Output: s.output, Started: func(uint32, int) {}, Failed: s.workerFailed, Ended: s.workerEnded})
}

// startWorker starts a process for the reactor. a.mu is held.
func (s *sdkServer) startWorker(e tasks.StartWorker) {
	token := make([]byte, 16)
	_, _ = rand.Read(token) // it does not fail
	name := "worker-" + strconv.FormatUint(uint64(e.ID), 10)
	cl := &sdkClient{sdkRecord: sdkRecord{ID: e.ID, Kind: sdk.KindWorker, Token: hex.EncodeToString(token), Job: e.Key.Job, Name: name, Python: e.Key.Language == "python"}, gone: make(chan struct{})}
	s.clients[e.ID] = cl
	if err := s.remember(cl); err != nil {
		s.wg.Go(func() { s.workerFailed(e.ID, err) })
		return
	}
	job := s.wireJob(e.Key.Job)
	s.wg.Go(func() {
		if err := s.start(cl, e, job); err != nil {
			s.workerFailed(e.ID, err)
		}
	})
}

// wireJob is the job of a driver that one started; nil = none did. a.mu is held.
func (s *sdkServer) wireJob(key string) *wire.Job {
	n, err := strconv.ParseUint(key, 10, 32)
	if err != nil {
		return nil
	}
	return s.a.core.Job(wire.JobID(n))
}

// warm starts the template for a driver's tasks before the first one comes. a.mu is held.
func (s *sdkServer) warm(key string, h *sdk.Hello) {
	if h.Language != "python" {
		return
	}
	job, k := s.wireJob(key), tasks.Key{Job: key, Program: h.Program, Dir: h.Dir, Path: strings.Join(h.Path, "\x00")}
	s.wg.Go(func() {
		dir, path, err := s.dirs.place(s.ctx, k)
		if err != nil {
			return // its tasks will say so
		}
		env, err := s.a.env.ofWorkers(s.ctx, job, key, path, nil)
		if err != nil {
			return
		}
		s.a.workers.Warm(workers.Spec{Job: key, Program: k.Program, Python: true, Env: env, Dir: dir})
		s.endAgain(key)
	})
}

// start makes what a worker needs and has it started.
func (s *sdkServer) start(cl *sdkClient, e tasks.StartWorker, job *wire.Job) error {
	program := e.Key.Program
	if e.Key.Language != "python" {
		var err error
		if program, err = s.programs.runs(s.ctx, e.Key.Job, e.Key.Program); err != nil {
			return err
		}
	}
	dir, path, err := s.dirs.place(s.ctx, e.Key)
	if err != nil {
		return err
	}
	ctl, err := newControl(nil)
	if err != nil {
		return err
	}
	s.a.mu.Lock()
	known := s.clients[e.ID] == cl
	if known {
		cl.control = ctl
	} else {
		ctl.close()
	}
	s.a.mu.Unlock()
	if !known { // its job ended meanwhile
		return nil
	}
	if err := s.a.super.StoreFD(s.ctx, controlName(e.ID), ctl.file); err != nil {
		return err
	}
	vars := map[string]string{}
	for kv := range strings.SplitSeq(e.Key.Env, "\x00") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			vars[k] = v
		}
	}
	env, err := s.a.env.ofWorkers(s.ctx, job, e.Key.Job, path, vars)
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return errs.Wrap(errs.Exhausted, err, "the socket of a worker")
	}
	theirs, ours := os.NewFile(uintptr(pair[1]), "worker"), os.NewFile(uintptr(pair[0]), "agent")
	c, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return errs.Wrap(errs.Exhausted, err, "the socket of a worker")
	}
	conn, err := newSDKConn(c.(*net.UnixConn))
	if err != nil {
		theirs.Close()
		return err
	}
	set := map[string]string{"LAUNCHER_WORKER": cl.Token, "CUDA_VISIBLE_DEVICES": e.Key.GPUs, "OMP_NUM_THREADS": strconv.FormatInt(max(1, e.Need.CPU/wire.Unit), 10)}
	if vars["OMP_NUM_THREADS"] != "" {
		delete(set, "OMP_NUM_THREADS")
	}
	s.a.workers.Start(workers.Spec{ID: e.ID, Job: e.Key.Job, Name: cl.Name, Program: program, Python: e.Key.Language == "python", Env: env, Set: set, Dir: dir, Socket: theirs})
	s.wg.Go(func() { s.worker(conn) })
	s.endAgain(e.Key.Job)
	return nil
}

// endAgain ends a job's workers once more if it ended while they were started.
func (s *sdkServer) endAgain(job string) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	for _, x := range s.clients {
		if x.Job == job {
			return
		}
	}
	s.a.workers.EndJob(job)
}

// worker serves the socket that a worker was started with.
func (s *sdkServer) worker(c *sdkConn) {
	stop := context.AfterFunc(s.ctx, func() { _ = c.c.Close() })
	defer stop()
	var first [4]byte
	for n := 0; n < len(first); {
		k, err := c.c.Read(first[n:])
		if err != nil { // it ended, which its pool tells
			c.close()
			return
		}
		n += k
	}
	if string(first[:]) != sdk.Greeting {
		c.close()
		return
	}
	_ = s.conn(s.ctx, c, 0)
}

// workerFailed: a worker could not be started.
func (s *sdkServer) workerFailed(id uint32, err error) {
	if s.a.lostSupervisor(s.ctx) {
		return // no failure of its tasks
	}
	s.a.log.Warn("a worker cannot be started", "worker", id, "err", err)
	s.turn(func(now int64) {
		cl := s.clients[id]
		if cl == nil {
			return
		}
		delete(s.clients, id)
		s.forgotten(cl)
		s.core.WorkerFailed(now, id, strings.Join(append([]string{err.Error()}, errs.HintsOf(err)...), "; "))
		s.dropControl(cl)
	})
}

// workerEnded: the process of a worker is gone.
func (s *sdkServer) workerEnded(id uint32, end workers.End) {
	s.turn(func(now int64) {
		cl := s.clients[id]
		if cl == nil {
			return
		}
		cl.end = end
		if end.Signal == int32(unix.SIGKILL) && s.oom.grew() {
			cl.starved = starved()
		}
		close(cl.gone)
		if cl.conn != nil {
			cl.conn.noMore() // its reader takes what is there, and then ends
			return
		}
		s.forget(now, cl, end.String())
	})
}

// awaitEnd waits a moment for the end of a worker's process.
func (s *sdkServer) awaitEnd(cl *sdkClient) (workers.End, bool) {
	t := time.NewTimer(endWait)
	defer t.Stop()
	select {
	case <-cl.gone:
		return cl.end, true
	case <-t.C:
		return workers.End{}, false
	}
}

// stopWorker ends a worker. a.mu is held.
func (s *sdkServer) stopWorker(e tasks.StopWorker) {
	cl := s.clients[e.ID]
	if cl == nil {
		return
	}
	if e.Force {
		s.wg.Go(func() { s.a.workers.Signal(e.ID, unix.SIGKILL) })
		return
	}
	s.wg.Go(func() {
		t := time.NewTimer(exitBound)
		defer t.Stop()
		select {
		case <-cl.gone:
		case <-t.C:
			s.a.workers.Signal(e.ID, unix.SIGKILL)
		case <-s.ctx.Done():
		}
	})
}

// output passes on what a worker printed.
func (s *sdkServer) output(w workers.Worker, stream uint8, text []byte) {
	s.say(w.Job, w.Name+" pid="+strconv.Itoa(w.PID)+" node="+string(s.a.cfg.Node), stream, text)
}

// tell has the drivers of a job print something that concerns its user.
func (s *sdkServer) tell(job, text string) {
	s.say(job, "launcher node="+string(s.a.cfg.Node), 2, []byte(text+"\n"))
}

func (s *sdkServer) say(job, who string, stream uint8, text []byte) {
	s.logMu.Lock()
	to, away := slices.Clone(s.drivers[job]), slices.Clone(s.peers.logs[job])
	s.logMu.Unlock()
	frame := func(dropped int) []byte {
		b, at := sdk.Begin(nil, sdk.MsgLog, 0)
		b = append(b, stream, 0, byte(len(who)), byte(len(who)>>8))
		b = append(b, who...)
		if dropped > 0 {
			b = append(b, "("+strconv.Itoa(dropped)+" lines were too fast and are only in the node's file)\n"...)
		}
		return sdk.Finish(append(b, text...), at)
	}
	lines := strings.Count(string(text), "\n")
	for _, c := range to {
		c.putLog(lines, frame)
		c.flush()
	}
	for _, w := range away { // the nodes of the drivers, where those are others
		w.putLog(lines, frame)
	}
}

// control is the page through which a worker is told that frames are withdrawn.
type control struct {
	file  *os.File
	words []uint32
	mem   []byte
	from  uint32 // of the range that is withdrawn now
	to    uint32
}

func controlName(worker uint32) string { return "control/" + strconv.FormatUint(uint64(worker), 10) }

// newControl makes a page, or takes that of an earlier agent up.
func newControl(f *os.File) (*control, error) {
	if f == nil {
		var err error
		if f, err = shm.CreateSized("launcher-control", controlSize, false); err != nil {
			return nil, errs.Wrap(errs.Exhausted, err, "the control page of a worker")
		}
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, controlSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		f.Close()
		return nil, errs.Wrap(errs.Exhausted, err, "the control page of a worker")
	}
	c := &control{file: f, mem: mem, words: unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(mem))), controlSize/4)}
	c.from, c.to = c.words[controlFrom], c.words[controlTo]
	return c, nil
}

const (
	controlSize = 4096
	controlFrom = 16
	controlTo   = 17
)

// withdraw marks the frames [from, to). Those that were withdrawn before and that the
// worker has not come to must stay so; if there is a frame between that is not withdrawn,
// nothing can be done until the worker has passed them (false).
func (c *control) withdraw(from, to uint32) bool {
	if took := atomic.LoadUint32(&c.words[0]); c.from != 0 && took+1 < c.to {
		if from > c.to {
			return false
		}
		from = min(from, c.from)
	}
	c.from, c.to = from, to
	atomic.StoreUint32(&c.words[controlFrom], from) // the worker reads them the other way round
	atomic.StoreUint32(&c.words[controlTo], to)
	return true
}

func (c *control) close() {
	_ = unix.Munmap(c.mem)
	c.file.Close()
}

// withdraw takes frames back that a worker does not run. The worker writes what it takes
// before it looks at the page, and every CPU passes a barrier between our mark and our look:
// so it either sees the mark or is seen; and what it then does it writes too. a.mu is held.
func (s *sdkServer) withdraw(e tasks.Withdraw) {
	cl := s.clients[e.Client]
	if cl == nil || cl.control == nil {
		return
	}
	marked := cl.control.withdraw(e.From, e.To)
	s.wg.Go(func() {
		if !marked {
			s.turn(func(now int64) { s.core.Withdrawn(now, e.Client, e.To, e.To) })
			return
		}
		barrier()
		for decided := false; !decided && s.ctx.Err() == nil; time.Sleep(time.Millisecond) {
			s.turn(func(now int64) {
				if s.clients[e.Client] != cl || cl.control == nil {
					decided = true
					return
				}
				var begun uint32
				if begun, decided = cl.control.runs(e.From); decided {
					s.core.Withdrawn(now, e.Client, begun, e.To)
				}
			})
		}
	})
}

// runs gives the sequence of the last frame that the worker runs of those from a withdrawn
// one on; false while it makes up its mind, which takes no time unless it is stopped there.
func (c *control) runs(from uint32) (uint32, bool) {
	took := atomic.LoadUint32(&c.words[0])
	ran, skipped := atomic.LoadUint32(&c.words[1]), atomic.LoadUint32(&c.words[2])
	if took < from {
		return from - 1, true
	}
	return max(ran, from-1), ran >= took || skipped >= took
}

// dropControl lets go of a dead worker's page. a.mu is held.
func (s *sdkServer) dropControl(cl *sdkClient) {
	if cl.control != nil {
		cl.control.close()
		cl.control = nil
		_ = s.a.super.DropFD(controlName(cl.ID))
	}
}

// barrier returns when every CPU has passed a memory barrier.
func barrier() {
	const global = 1 << 0 // MEMBARRIER_CMD_GLOBAL
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		time.Sleep(20 * time.Millisecond)
	}
}
