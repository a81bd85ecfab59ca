package spool

import (
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/wire"
)

// loop is the goroutine that serves all pipes.
func (s *Spool) loop() {
	defer close(s.done)
	defer s.shut()
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := unix.EpollWait(s.ep, events, s.patience(time.Now()))
		if err != nil && err != unix.EINTR {
			s.cfg.Log.Error("waiting for output", "err", err)
			return
		}
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) == s.bell {
				var b [8]byte
				_, _ = unix.Read(s.bell, b[:])
				continue
			}
			if p := s.pipes[int(e.Fd)]; p != nil {
				p.hup = p.hup || e.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0
				s.pump(p)
			}
		}
		s.mu.Lock()
		todo, closing := s.queue, s.closing
		s.queue = nil
		s.mu.Unlock()
		for _, f := range todo {
			f()
		}
		if closing {
			return
		}
		s.timers(time.Now())
	}
}

// shut closes everything; nobody is in the loop any more.
func (s *Spool) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	for _, p := range s.pipes {
		p.file.Close()
	}
	for _, st := range s.jobs {
		if st.file != nil {
			st.file.Close()
		}
		st.wake()
	}
	unix.Close(s.ep)
	unix.Close(s.bell)
}

// patience is how long the loop may sleep, in milliseconds, rounded up.
func (s *Spool) patience(now time.Time) int {
	wait := time.Duration(-1)
	sooner := func(t time.Time) {
		if d := max(t.Sub(now), 0); wait < 0 || d < wait {
			wait = d
		}
	}
	if len(s.resting) > 0 {
		sooner(s.resting[0].until)
	}
	if len(s.early) > 0 {
		sooner(s.early[0].until)
	}
	s.mu.Lock()
	for _, st := range s.jobs {
		if st.paused != nil {
			sooner(st.retry)
		}
	}
	s.mu.Unlock()
	if wait < 0 {
		return -1
	}
	return int((wait + time.Millisecond - 1) / time.Millisecond)
}

// timers arms the pipes that have rested and tries paused streams again.
func (s *Spool) timers(now time.Time) {
	n := 0
	for n < len(s.resting) && !s.resting[n].until.After(now) {
		p := s.resting[n]
		p.waiting = false
		if s.pipes[p.fd] == p {
			s.arm(p)
		}
		n++
	}
	s.resting = slices.Delete(s.resting, 0, n)
	n = 0
	for n < len(s.early) && !s.early[n].until.After(now) {
		if e := s.early[n]; s.procs[e.name] == e.pr && e.pr.early {
			s.drained(e.name)
		}
		n++
	}
	s.early = slices.Delete(s.early, 0, n)
	var due []*stream
	s.mu.Lock()
	for _, st := range s.jobs {
		if st.paused != nil && !st.retry.After(now) {
			due = append(due, st)
		}
	}
	s.mu.Unlock()
	for _, st := range due {
		s.retry(st, now)
	}
}

// adopt takes the pipes of a process in.
func (s *Spool) adopt(name wire.Proc, pipes []*pipe) {
	pr := s.procs[name]
	if pr == nil {
		pr = &process{}
		s.procs[name] = pr
	}
	for _, p := range pipes {
		if err := unix.EpollCtl(s.ep, unix.EPOLL_CTL_ADD, p.fd, &unix.EpollEvent{Events: armed, Fd: int32(p.fd)}); err != nil {
			s.cfg.Log.Error("an output that cannot be watched", "proc", name, "err", err)
			p.file.Close()
			continue
		}
		pr.open++
		pr.pipes = append(pr.pipes, p)
		s.pipes[p.fd] = p
		p.st.pipes[p] = true
	}
	pr.early = false
	switch {
	case pr.open == 0:
		s.drained(name)
	case pr.exited:
		s.lastWords(pr)
	}
}

const armed = unix.EPOLLIN | unix.EPOLLONESHOT

func (s *Spool) arm(p *pipe) {
	if err := unix.EpollCtl(s.ep, unix.EPOLL_CTL_MOD, p.fd, &unix.EpollEvent{Events: armed, Fd: int32(p.fd)}); err != nil {
		s.cfg.Log.Error("an output that cannot be watched", "proc", p.proc, "err", err)
		s.finish(p)
	}
}

// pump moves one piece of what a pipe has, then arms it again, lets it rest, or is done
// with it. It reports whether there may be more to do at once.
func (s *Spool) pump(p *pipe) (more bool) {
	st := p.st
	if st.paused != nil && !st.gone {
		p.idle = true
		if st.failed && p.last >= 0 {
			s.giveUp(p)
		}
		return false
	}
	n, err := unix.IoctlGetInt(p.fd, unix.TIOCINQ)
	if err != nil {
		s.cfg.Log.Error("reading output", "proc", p.proc, "err", err)
		s.finish(p)
		return false
	}
	if n == 0 && (p.hup || p.last == 0) {
		s.finish(p)
		return false
	}
	moved := 0
	if n > 0 {
		n = min(n, chunk)
		if p.last > 0 {
			n = min(n, p.last)
		}
		if moved, err = s.take(p, n); p.last > 0 {
			p.last -= moved
		}
		if err != nil {
			p.idle = true
			s.pauseStream(st, err)
			return false
		}
		if p.last == 0 {
			s.finish(p)
			return false
		}
	}
	switch {
	case p.last > 0:
		return true
	case moved < little && !p.hup:
		p.until = time.Now().Add(rest)
		if !p.waiting {
			p.waiting = true
			s.resting = append(s.resting, p)
		}
	default:
		s.arm(p)
	}
	return false
}

// take moves n bytes into the stream and tells the readers.
func (s *Spool) take(p *pipe, n int) (moved int, err error) {
	st := p.st
	if st.gone {
		return unix.Read(p.fd, make([]byte, n))
	}
	if st.end+int64(n)-st.acked > s.cfg.JobLimit {
		return 0, errs.New(errs.Exhausted, "%s of output of job %d wait to be taken to the record", wire.Bytes(st.end-st.acked), st.job)
	}
	moved, err = st.append(p, n, s.cfg.Segment, time.Now().UnixNano())
	if moved == 0 {
		return 0, err
	}
	s.mu.Lock()
	if k := len(st.segs); k == 0 || st.segs[k-1] != st.start {
		st.segs = append(st.segs, st.start)
	}
	st.end += int64(wire.LogFrameHeader + moved)
	st.wake()
	s.mu.Unlock()
	select {
	case s.news <- struct{}{}:
	default:
	}
	return moved, err
}

func (st *stream) wake() {
	if st.changed != nil {
		close(st.changed)
		st.changed = nil
	}
}

// pauseStream stops writing a stream for a while.
func (s *Spool) pauseStream(st *stream, cause error) {
	if st.paused != nil {
		return
	}
	err := errs.Wrap(errs.Exhausted, cause, "the output of job %d waits", st.job).
		Hint("make room in %s; the job's processes wait in write until then", s.cfg.Dir)
	now := time.Now()
	s.mu.Lock()
	st.paused, st.since, st.pause, st.retry = err, now, firstRetry, now.Add(firstRetry)
	s.mu.Unlock()
	s.cfg.Log.Warn("output waits", "job", st.job, "err", cause)
	s.cfg.Notify(Event{Kind: Paused, Job: st.job, Err: err})
}

// retry tries one pipe of a paused stream; if that goes, all of them flow again.
func (s *Spool) retry(st *stream, now time.Time) {
	err := error(nil)
	for p := range st.pipes {
		n, ierr := unix.IoctlGetInt(p.fd, unix.TIOCINQ)
		if ierr != nil || n == 0 {
			continue
		}
		n = min(n, chunk)
		if p.last > 0 {
			n = min(n, p.last)
		}
		var moved int
		if moved, err = s.take(p, n); p.last > 0 {
			p.last -= moved
		}
		break
	}
	if err == nil {
		s.mu.Lock()
		st.paused, st.failed = nil, false
		s.mu.Unlock()
		s.cfg.Log.Info("output flows again", "job", st.job, "after", now.Sub(st.since))
		s.cfg.Notify(Event{Kind: Resumed, Job: st.job})
		s.restart(st)
		return
	}
	st.pause = min(2*st.pause, lastRetry)
	s.mu.Lock()
	st.retry = now.Add(st.pause)
	s.mu.Unlock()
	if !st.failed && now.Sub(st.since) >= s.cfg.GiveUp {
		st.failed = true
		s.cfg.Notify(Event{Kind: Failed, Job: st.job, Err: st.paused})
		for p := range st.pipes {
			if p.last >= 0 {
				s.giveUp(p)
			}
		}
	}
}

// restart serves the pipes of a stream that had been left alone.
func (s *Spool) restart(st *stream) {
	for p := range st.pipes {
		if p.idle {
			p.idle = false
			for s.pump(p) {
			}
		}
	}
}

// giveUp drops what a process left in its pipe: its stream cannot be written.
func (s *Spool) giveUp(p *pipe) {
	n, _ := unix.IoctlGetInt(p.fd, unix.TIOCINQ)
	p.lost = int64(n)
	s.finish(p)
}

// exited notes the end of a process. One that nobody has added yet is given a moment:
// whoever starts it may be slower than it was.
func (s *Spool) exited(name wire.Proc) {
	pr := s.procs[name]
	switch {
	case pr == nil:
		pr = &process{early: true, exited: true}
		s.procs[name] = pr
		s.early = append(s.early, earlyExit{name, pr, time.Now().Add(addGrace)})
	case pr.open == 0 && !pr.early:
		delete(s.procs, name) // all was in before
	case !pr.exited:
		pr.exited = true
		s.lastWords(pr)
	}
}

// lastWords takes what is left in the pipes of a process that has ended.
func (s *Spool) lastWords(pr *process) {
	for _, p := range pr.pipes {
		if s.pipes[p.fd] != p {
			continue
		}
		n, err := unix.IoctlGetInt(p.fd, unix.TIOCINQ)
		if err != nil {
			n = 0
		}
		p.last = n
		if n == 0 {
			s.finish(p)
			continue
		}
		for s.pump(p) {
		}
	}
}

// finish closes a pipe. With the last one of a process all its output is in.
func (s *Spool) finish(p *pipe) {
	if s.pipes[p.fd] != p {
		return
	}
	delete(s.pipes, p.fd)
	delete(p.st.pipes, p)
	// The supervisor has the pipe too, so closing alone would leave it in the epoll set,
	// under a number that another pipe may get.
	_ = unix.EpollCtl(s.ep, unix.EPOLL_CTL_DEL, p.fd, nil)
	p.file.Close()
	pr := s.procs[p.proc]
	pr.open--
	pr.lost += p.lost
	if pr.open == 0 {
		s.drained(p.proc)
	}
}

// drained tells that all output of a process is in. Its entry stays until its end is
// known, so that the end is not taken for that of a process yet to be added.
func (s *Spool) drained(name wire.Proc) {
	e := Event{Kind: Drained, Job: name.Job, Proc: name}
	if pr := s.procs[name]; pr != nil {
		e.Lost, pr.lost, pr.pipes = pr.lost, 0, nil
		if pr.exited {
			delete(s.procs, name)
		}
	}
	s.mu.Lock()
	if st := s.jobs[name.Job]; st != nil {
		e.End = st.end
	}
	s.mu.Unlock()
	s.cfg.Notify(e)
}

// trim deletes segments that are acknowledged to the end.
func (s *Spool) trim(job wire.JobID, off int64) {
	s.mu.Lock()
	st := s.jobs[job]
	if st == nil {
		s.mu.Unlock()
		return
	}
	st.acked = max(st.acked, min(off, st.end))
	// The last segment goes too once it is worth it; the next piece begins a new one.
	if st.acked == st.end && st.file != nil && st.end-st.start >= s.cfg.Segment/4 {
		st.file.Close()
		st.file = nil
	}
	var drop []int64
	for len(st.segs) > 0 {
		end := st.end
		if len(st.segs) > 1 {
			end = st.segs[1]
		} else if st.file != nil {
			break
		}
		if end > st.acked {
			break
		}
		drop = append(drop, st.segs[0])
		st.segs = st.segs[1:]
	}
	if len(st.segs) == 0 && st.file == nil && len(drop) > 0 {
		// An empty segment keeps the offset for the next agent.
		if f, err := os.OpenFile(st.path(st.end), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err == nil {
			st.file, st.start, st.segs = f, st.end, []int64{st.end}
		}
	}
	paused := st.paused != nil
	s.mu.Unlock()
	for _, start := range drop {
		if err := os.Remove(st.path(start)); err != nil {
			s.cfg.Log.Warn("deleting shipped output", "job", job, "err", err)
		}
	}
	if paused {
		s.retry(st, time.Now())
	}
}

func (s *Spool) forget(job wire.JobID) {
	s.mu.Lock()
	st := s.jobs[job]
	if st == nil {
		s.mu.Unlock()
		return
	}
	delete(s.jobs, job)
	for name, pr := range s.procs {
		if name.Job == job && pr.open == 0 && !pr.early {
			delete(s.procs, name)
		}
	}
	st.gone = true
	st.wake()
	if st.file != nil {
		st.file.Close()
		st.file = nil
	}
	s.mu.Unlock()
	if err := os.RemoveAll(st.dir); err != nil {
		s.cfg.Log.Warn("deleting output", "job", job, "err", err)
	}
	s.restart(st)
}
