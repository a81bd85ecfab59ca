package spool

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/wire"
)

// Config of a Spool.
type Config struct {
	Dir string // of its own; made if it is not there
	Log *slog.Logger
	// Notify gets the events, in the spool's goroutine: it must not block, nor call
	// Close.
	Notify func(Event)

	Segment  int64         // size of a segment file; 0 = 16 MiB
	JobLimit int64         // bytes of a job that wait to be acknowledged before its output waits; 0 = 4 GiB
	GiveUp   time.Duration // how long a full disk is waited for; 0 = 10 minutes
}

const (
	// chunk bounds what is taken from one pipe before the next has its turn.
	chunk = 64 << 10
	// rest is how long a pipe that gave little is left alone, so that a program that
	// writes line by line makes frames of many lines. The first piece never waits.
	rest   = 5 * time.Millisecond
	little = 16 << 10
	// addGrace is how long after the end of a process it may still be added.
	addGrace   = 2 * time.Second
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Spool is the output of all jobs of a node. Its methods may be called by any goroutine.
type Spool struct {
	cfg  Config
	ep   int // epoll
	bell int // eventfd that wakes the loop
	done chan struct{}

	mu      sync.Mutex
	jobs    map[wire.JobID]*stream
	queue   []func() // for the loop
	news    chan struct{}
	closing bool

	// Of the loop.
	pipes   map[int]*pipe
	procs   map[wire.Proc]*process
	resting []*pipe     // in order of until
	early   []earlyExit // the same
}

// pipe is the read end of a process's output.
type pipe struct {
	proc    wire.Proc
	stream  uint8
	file    *os.File
	fd      int
	st      *stream
	until   time.Time // rests until
	idle    bool      // not armed: its stream is paused
	hup     bool      // nobody writes any more
	last    int       // bytes that its process left when it ended; -1 = it runs
	lost    int64
	waiting bool // in resting
}

type process struct {
	pipes  []*pipe
	open   int // of them
	lost   int64
	exited bool
	early  bool // ended before it was added
}

type earlyExit struct {
	name  wire.Proc
	pr    *process
	until time.Time
}

// Open takes up the spool in cfg.Dir and starts its goroutine, which Close ends.
func Open(cfg Config) (*Spool, error) {
	if cfg.Segment <= 0 {
		cfg.Segment = 16 << 20
	}
	if cfg.JobLimit <= 0 {
		cfg.JobLimit = 4 << 30
	}
	if cfg.GiveUp <= 0 {
		cfg.GiveUp = 10 * time.Minute
	}
	s := &Spool{cfg: cfg, done: make(chan struct{}), jobs: map[wire.JobID]*stream{}, news: make(chan struct{}, 1),
		pipes: map[int]*pipe{}, procs: map[wire.Proc]*process{}}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the spool directory")
	}
	names, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the spool directory")
	}
	for _, n := range names {
		id, err := strconv.ParseUint(n.Name(), 10, 32)
		if err != nil || !n.IsDir() {
			continue
		}
		st, err := openStream(filepath.Join(cfg.Dir, n.Name()), wire.JobID(id))
		if err != nil {
			return nil, err
		}
		s.jobs[st.job] = st
	}
	if s.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, errs.Wrap(errs.Exhausted, err, "the spool")
	}
	if s.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(s.ep)
		return nil, errs.Wrap(errs.Exhausted, err, "the spool")
	}
	if err := unix.EpollCtl(s.ep, unix.EPOLL_CTL_ADD, s.bell, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(s.bell)}); err != nil {
		unix.Close(s.ep)
		unix.Close(s.bell)
		return nil, errs.Wrap(errs.Internal, err, "the spool")
	}
	go s.loop()
	return s, nil
}

// Pipe makes a pipe for a process's output. Unlike those of os.Pipe its ends are not
// known to Go's own poller, which would wake up for every write.
func Pipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, errs.Wrap(errs.Exhausted, err, "a pipe for a process's output").Hint("raise the limit of open files (ulimit -n)")
	}
	return os.NewFile(uintptr(fds[0]), "output"), os.NewFile(uintptr(fds[1]), "output"), nil
}

// Add starts to spool the output of a process and takes the read ends over. Either may
// be nil. Drained tells when all is in.
func (s *Spool) Add(p wire.Proc, stdout, stderr *os.File) error {
	st, err := s.stream(p.Job)
	if err != nil {
		for _, f := range []*os.File{stdout, stderr} {
			if f != nil {
				f.Close()
			}
		}
		return err
	}
	var pipes []*pipe
	for i, f := range []*os.File{stdout, stderr} {
		if f != nil {
			pipes = append(pipes, &pipe{proc: p, stream: uint8(i + 1), file: f, fd: int(f.Fd()), st: st, last: -1})
		}
	}
	s.post(func() { s.adopt(p, pipes) })
	return nil
}

// AddStored adds, after a restart of the agent, what the supervisor kept under names of
// FDName. It gives back the descriptors that are something else.
func (s *Spool) AddStored(fds map[string]*os.File) (rest map[string]*os.File, err error) {
	rest = map[string]*os.File{}
	byProc := map[wire.Proc][2]*os.File{}
	for name, f := range fds {
		if p, stream, ok := ParseFDName(name); ok {
			pair := byProc[p]
			pair[stream-1] = f
			byProc[p] = pair
		} else {
			rest[name] = f
		}
	}
	for p, pair := range byProc {
		err = errors.Join(err, s.Add(p, pair[0], pair[1]))
	}
	return rest, err
}

// Exited tells that the main process of p has ended: what is in its pipes now is all of
// its output, even if processes that it left behind hold them open. It may come before
// Add. For a process that is not added within two seconds (its pipes were drained and
// dropped by an earlier agent) Drained comes then; for one that is drained already there
// is no second Drained.
func (s *Spool) Exited(p wire.Proc) { s.post(func() { s.exited(p) }) }

// Jobs lists the streams of all jobs, in no order.
func (s *Spool) Jobs() []JobState {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]JobState, 0, len(s.jobs))
	for _, st := range s.jobs {
		out = append(out, st.state())
	}
	return out
}

// Job gives one stream; ok is false when the job has none here.
func (s *Spool) Job(job wire.JobID) (state JobState, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.jobs[job]
	if st == nil {
		return JobState{Job: job}, false
	}
	return st.state(), true
}

func (st *stream) state() JobState {
	base := st.end
	if len(st.segs) > 0 {
		base = st.segs[0]
	}
	return JobState{Job: st.job, Base: base, End: st.end, Paused: st.paused}
}

// Changed receives after some stream has grown. It is one channel for all readers
// together; several use Wait.
func (s *Spool) Changed() <-chan struct{} { return s.news }

// Wait returns when the stream of job is longer than off.
func (s *Spool) Wait(ctx context.Context, job wire.JobID, off int64) error {
	for {
		s.mu.Lock()
		st := s.jobs[job]
		switch {
		case s.closing:
			s.mu.Unlock()
			return errs.New(errs.Unavailable, "the spool is closed")
		case st == nil:
			s.mu.Unlock()
			return errNoJob(job)
		case st.end > off:
			s.mu.Unlock()
			return nil
		}
		if st.changed == nil {
			st.changed = make(chan struct{})
		}
		ch := st.changed
		s.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Read gives whole frames of a job from off, which must be the start of one: about limit
// bytes, at least one frame if there is any, and none (to == off) when nothing more is
// written yet. What was trimmed is errs.NotFound.
func (s *Spool) Read(job wire.JobID, off int64, limit int) (data []byte, to int64, err error) {
	s.mu.Lock()
	st := s.jobs[job]
	if st == nil {
		s.mu.Unlock()
		return nil, off, errNoJob(job)
	}
	end, seg, next := st.end, int64(-1), st.end
	for i, start := range st.segs {
		if start <= off {
			seg, next = start, end
			if i+1 < len(st.segs) {
				next = st.segs[i+1]
			}
		}
	}
	path := st.path(seg)
	s.mu.Unlock()
	switch {
	case off == end:
		return nil, off, nil
	case off > end:
		return nil, off, errs.New(errs.Invalid, "offset %d of job %d's output is past its end %d", off, job, end)
	case seg < 0:
		return nil, off, errs.New(errs.NotFound, "the output of job %d before offset %d is deleted", job, off)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, off, errs.Wrap(errs.NotFound, err, "the output of job %d at %d", job, off)
	}
	defer f.Close()
	// One frame is at most a chunk, so this holds at least one.
	b := make([]byte, min(next-off, int64(max(limit, chunk+wire.LogFrameHeader))))
	if _, err := io.ReadFull(io.NewSectionReader(f, off-seg, int64(len(b))), b); err != nil {
		return nil, off, errs.Wrap(errs.Corrupt, err, "the output of job %d at %d", job, off)
	}
	whole := 0
	for whole < len(b) {
		_, _, n, err := wire.ParseLogFrame(b[whole:])
		if err != nil {
			return nil, off, errs.Wrap(errs.Corrupt, err, "the output of job %d at %d", job, off+int64(whole))
		}
		if n == 0 {
			break
		}
		whole += n
	}
	return b[:whole], off + int64(whole), nil
}

// Trim lets go of what is acknowledged: everything before off.
func (s *Spool) Trim(job wire.JobID, off int64) { s.post(func() { s.trim(job, off) }) }

// Forget deletes the output of a job. Pipes that are still open are read and thrown
// away; their processes should have ended.
func (s *Spool) Forget(job wire.JobID) { s.post(func() { s.forget(job) }) }

// Close ends the spool's goroutine. What is in pipes stays there; files stay.
func (s *Spool) Close() {
	s.mu.Lock()
	was := s.closing
	s.closing = true
	s.mu.Unlock()
	if !was {
		s.ring()
	}
	<-s.done
}

// stream finds or makes the stream of a job.
func (s *Spool) stream(job wire.JobID) (*stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.jobs[job]; st != nil {
		return st, nil
	}
	st, err := openStream(filepath.Join(s.cfg.Dir, strconv.FormatUint(uint64(job), 10)), job)
	if err == nil {
		s.jobs[job] = st
	}
	return st, err
}

// post gives the loop something to do.
func (s *Spool) post(f func()) {
	s.mu.Lock()
	s.queue = append(s.queue, f)
	first := len(s.queue) == 1
	s.mu.Unlock()
	if first {
		s.ring()
	}
}

func (s *Spool) ring() {
	one := [8]byte{1}
	_, _ = unix.Write(s.bell, one[:])
}
