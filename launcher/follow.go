package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"launcher/broker"
	"launcher/internal/errs"
	"launcher/wire"
)

const (
	// reconnectBound is how long a foreground command waits for a head that is away; its
	// supervisor brings it back within seconds.
	reconnectBound = 60 * time.Second
	// farBound is the same where the head is on another machine: the link to it may be cut.
	farBound = time.Hour
	// logsBound is how long the rest of a job's output may take after its end.
	logsBound = 30 * time.Second
)

// follower watches one job to its end, with its output. When the head is restarted it
// connects again and goes on at the offset it had reached: nothing is lost or doubled.
type follower struct {
	a          *app
	target     target
	job        wire.JobID
	task, rank int64 // -1 = all
	output     func(wire.LogChunk) error
	info       func(wire.JobInfo)

	offset  int64
	version uint64
	last    wire.JobInfo
	ended   bool         // last is terminal
	drained bool         // all output has been passed on
	arrived atomic.Int64 // chunks of output so far
}

// run follows until the job is over. c is the first connection to use; it is closed.
func (f *follower) run(ctx context.Context, c *client) (wire.JobInfo, error) {
	var away time.Time
	told, bound := false, f.patience()
	for {
		if c != nil {
			before := f.offset
			err := f.once(ctx, c)
			c.Close()
			if err == nil {
				return f.last, nil
			}
			if ctx.Err() != nil {
				return f.last, ctx.Err()
			}
			if !errs.Retryable(err) {
				return f.last, err
			}
			if away.IsZero() || f.offset != before {
				away = time.Now()
			}
		}
		if time.Since(away) > bound {
			return f.last, errs.New(errs.Unavailable, "the head of cluster %s has been away for %s", f.target.name, bound).
				Hint("the job goes on without it; `launcher attach %d` joins it again", f.job)
		}
		if !told && time.Since(away) > 2*time.Second {
			told = true
			f.a.note("launcher: the head is away; job %d goes on, waiting for the head", f.job)
		}
		select {
		case <-ctx.Done():
			return f.last, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		var err error
		if c, err = dial(ctx, f.target); err != nil {
			c = nil
			// A head that is being restarted refuses for a moment; anything else will not get better.
			if !errs.Retryable(err) && !errs.Is(err, errs.NotFound) {
				return f.last, err
			}
		}
	}
}

// patience is how long the head may be away. Only a head of this machine has an address in
// the cluster's file.
func (f *follower) patience() time.Duration {
	if !f.target.inside {
		if c, err := broker.ReadClusterFile(f.target.dir); err == nil && len(c.Addrs) == 0 {
			return farBound
		}
	}
	return reconnectBound
}

// once follows over one connection; nil means that the job is over and its output passed on.
func (f *follower) once(ctx context.Context, c *client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	// Both streams end with the session, so that neither goroutine outlives this call.
	stop := context.AfterFunc(ctx, c.Close)
	defer stop()
	defer cancel()

	logs, watch := make(chan error, 1), make(chan error, 1)
	if f.output != nil && !f.drained {
		wg.Go(func() { logs <- f.readLogs(ctx, c) })
	} else {
		logs <- nil
	}
	if !f.ended {
		wg.Go(func() { watch <- f.readInfo(ctx, c) })
	} else {
		watch <- nil
	}
	var late <-chan time.Time
	seen := int64(-1)
	for logs != nil || watch != nil {
		select {
		case err := <-logs:
			if err != nil {
				return err
			}
			logs = nil
			f.drained = true
		case err := <-watch:
			if err != nil {
				return err
			}
			watch = nil
			f.ended = true
			late = time.After(logsBound)
		case <-late:
			if at := f.arrived.Load(); at != seen { // much output takes its time
				seen = at
				late = time.After(logsBound)
				continue
			}
			f.a.note("launcher: the rest of the output of job %d has not arrived after %s; `launcher logs %d` shows what comes", f.job, logsBound, f.job)
			f.drained = true
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (f *follower) readLogs(ctx context.Context, c *client) error {
	st, err := c.open(ctx, wire.MsgLogs, wire.LogsRequest{Job: f.job, Task: f.task, Rank: f.rank, Offset: f.offset, Follow: true})
	if err != nil {
		return err
	}
	defer st.Close()
	for {
		var ch wire.LogChunk
		switch err := answer(st, &ch); {
		case errors.Is(err, io.EOF):
			if c.s.Err() != nil { // the session went, not just the stream
				return errs.New(errs.Unavailable, "the connection to the head was lost")
			}
			return nil
		case err != nil:
			return err
		}
		if err := f.output(ch); err != nil {
			return &exitError{code: exitLauncher, side: sideLauncher, err: errs.Wrap(errs.Unknown, err, "cannot write the output")}
		}
		f.offset = ch.Offset
		f.arrived.Add(1)
	}
}

func (f *follower) readInfo(ctx context.Context, c *client) error {
	st, err := c.open(ctx, wire.MsgWatch, wire.Watch{Job: f.job, Version: f.version})
	if err != nil {
		return err
	}
	defer st.Close()
	for {
		var j wire.JobInfo
		switch err := answer(st, &j); {
		case errors.Is(err, io.EOF):
			return errs.New(errs.Unavailable, "the connection to the head was lost")
		case err != nil:
			return err
		}
		if j.Held != "" && j.Held != f.last.Held {
			f.a.note("launcher: job %d waits: %s", f.job, j.Held)
		}
		f.last, f.version = j, j.Version
		if f.info != nil {
			f.info(j)
		}
		if j.State.Terminal() {
			return nil
		}
	}
}

// interrupts turns Ctrl-C into the cancelling of a foreground job: the first asks it to
// stop (SIGTERM, grace, SIGKILL), a second one kills at once, and then there is a bound
// on how long we wait for it. Closing the terminal and our own death only detach.
type interrupts struct {
	a      *app
	ch     chan os.Signal
	cancel context.CancelFunc // gives up waiting
	wg     sync.WaitGroup
	quit   chan struct{}
	mu     sync.Mutex
	count  int
	job    wire.JobID // 0 until it is accepted
	target target
	grace  int64
	sent   chan struct{} // closed when the newest cancel has been handed in
}

func (a *app) catchInterrupts(t target, grace int64, giveUp context.CancelFunc) *interrupts {
	i := &interrupts{a: a, ch: make(chan os.Signal, 8), cancel: giveUp, quit: make(chan struct{}), target: t, grace: grace}
	signal.Notify(i.ch, os.Interrupt)
	i.wg.Go(i.loop)
	return i
}

// setJob says which job an interrupt means, also one that has come already.
func (i *interrupts) setJob(j wire.JobID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.job = j
	if i.count > 0 {
		i.send(i.count)
	}
}

// interrupted reports whether Ctrl-C was pressed.
func (i *interrupts) interrupted() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.count > 0
}

func (i *interrupts) stop() {
	signal.Stop(i.ch)
	close(i.quit)
	i.wg.Wait()
}

func (i *interrupts) loop() {
	for {
		select {
		case <-i.quit:
			return
		case <-i.ch:
			i.mu.Lock()
			i.count++
			if i.job != 0 && i.count <= 2 {
				i.send(i.count)
			}
			if i.count > 2 {
				i.cancel()
			}
			i.mu.Unlock()
		}
	}
}

// send cancels the job, in the background; i.mu is held.
func (i *interrupts) send(nth int) {
	job, grace := i.job, i.grace
	if nth == 1 {
		i.a.note("launcher: stopping job %d (SIGTERM, %s later SIGKILL); Ctrl-C again kills it now", job, shortDuration(time.Duration(grace)))
	} else {
		grace = 0
	}
	before := i.sent // the two must arrive in order: the second says "now"
	i.sent = make(chan struct{})
	sent := i.sent
	i.wg.Go(func() {
		if before != nil {
			<-before
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		c, err := dial(ctx, i.target)
		if err == nil {
			var got wire.Cancelled
			err = c.call(ctx, wire.MsgCancel, wire.Cancel{Job: job, Grace: grace}, &got)
			c.Close()
		}
		if err != nil {
			i.a.note("launcher: cannot reach the head to stop job %d: %v", job, err)
		}
		close(sent)
		if nth < 2 {
			return
		}
		// Killed processes are gone in milliseconds; past this something is wrong, and the
		// user has asked twice.
		select {
		case <-i.quit:
		case <-time.After(5 * time.Second):
			i.cancel()
		}
	})
}

// jobExit maps the end of a job to the end of the command that ran it.
func jobExit(j wire.JobInfo) error {
	code := int(j.ExitCode)
	switch j.State {
	case wire.StateDone:
		return nil
	case wire.StateCancelled:
		return &exitError{code: exitCancelled, side: sideLauncher}
	case wire.StateFailed:
		if code <= 0 || code > 255 {
			break
		}
		if code < exitTimeout || code > exitNotFound || strings.HasSuffix(j.Cause, fmt.Sprintf("exited with %d", code)) {
			return &exitError{code: code, side: sideCommand}
		}
		// Launcher's own words for a process that it ended, could not start or lost.
		_, why, told := strings.Cut(j.Cause, fmt.Sprintf("exited with %d: ", code))
		switch {
		case told && j.Tasks == 1:
			return exitWith(code, errs.New(errs.NotFound, "%s", why))
		case code == exitLauncher:
			return exitWith(code, errs.New(errs.Lost, "job %d failed: %s", j.ID, j.Cause))
		}
		return &exitError{code: code, side: sideLauncher}
	}
	cause := j.Cause
	if cause == "" {
		cause = "no exit code is known"
	}
	return exitWith(exitLauncher, errs.New(errs.Lost, "job %d %s: %s", j.ID, j.State, cause).Hint("`launcher tasks %d` shows each task", j.ID))
}

// jobSummary is the closing line about a job that did not end well.
func jobSummary(j wire.JobInfo) string {
	s := fmt.Sprintf("launcher: job %d %s", j.ID, j.State)
	if j.Cause != "" {
		s += ": " + j.Cause
	}
	return s
}

// detachOnInterrupt is a context that Ctrl-C ends: for commands that only watch.
func detachOnInterrupt(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
}
