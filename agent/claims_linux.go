package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/detect"
	"launcher/internal/clock"
)

// claims are this node's locks on GPUs of its machine, so that clusters of whatever users
// do not take the same one. A lock is a socket that listens at an abstract name: it needs
// no file and no rights, all users of the machine (of one network namespace) meet there,
// whoever connects learns from the kernel whose it is, nobody is answered, and it goes with
// the last process that has it open. Those that matter are with the
// supervisor, too, and so outlive the agent while work of the node uses the GPU.
type claims struct {
	log    *slog.Logger
	super  claimKeeper
	ignore bool // share = "ignore": what others have is no reason
	clock  clock.Clock
	wake   chan struct{} // keep has something to do

	mu     sync.Mutex
	held   map[string]*claim
	missed bool // since it was last asked, a Claim failed
}

type claim struct {
	f       *os.File
	used    bool
	kept    bool  // the supervisor has it
	dropped int64 // when it was last used
}

// claimKeeper is what claims need of the supervisor.
type claimKeeper interface {
	StoreFD(ctx context.Context, name string, f *os.File) error
	DropFD(names ...string) error
	Alive(ctx context.Context) error
}

const (
	claimPrefix = "gpu." // of descriptors at the supervisor
	// claimLinger is how long a lock is kept that nothing uses: the next task may be near.
	claimLinger = time.Second
	claimBound  = 5 * time.Second
	// claimBacklog is how many may ask between two times that they are let in; whoever
	// comes then learns that it is locked, and not by whom.
	claimBacklog = 16
)

// newClaims takes up the locks that an earlier agent left with the supervisor.
func newClaims(log *slog.Logger, super claimKeeper, clk clock.Clock, ignore bool, fds map[string]*os.File) *claims {
	c := &claims{log: log, super: super, ignore: ignore, clock: clk, wake: make(chan struct{}, 1), held: map[string]*claim{}}
	for name, f := range fds {
		if uuid, ok := strings.CutPrefix(name, claimPrefix); ok {
			delete(fds, name)
			_ = unix.Listen(int(f.Fd()), claimBacklog) // it is this process that has it now
			c.held[uuid] = &claim{f: f, kept: true, dropped: c.clock.Now()}
		}
	}
	return c
}

func claimAddr(uuid string) unix.Sockaddr { return &unix.SockaddrUnix{Name: "@launcher/gpu/" + uuid} }

// Claim takes a GPU. See core.Claims.
func (c *claims) Claim(uuid string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.held[uuid]; h != nil {
		h.used = true
		return true
	}
	f, err := bindClaim(uuid)
	switch {
	case err == nil:
		c.held[uuid] = &claim{f: f, used: true}
		c.stir()
		return true
	case c.ignore:
		return true
	case err != unix.EADDRINUSE: // the lock is advice: work goes on without it
		c.log.Warn("a GPU cannot be locked", "gpu", uuid, "err", err)
		return true
	}
	c.missed = true
	return false
}

func bindClaim(uuid string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err = unix.Bind(fd, claimAddr(uuid)); err == nil {
		err = unix.Listen(fd, claimBacklog)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), claimPrefix+uuid), nil
}

// admit lets in who has asked, and out again: what they wanted to know they know.
func (h *claim) admit() {
	for {
		p := []unix.PollFd{{Fd: int32(h.f.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(p, 0); n != 1 || err != nil {
			return
		}
		fd, _, err := unix.Accept4(int(h.f.Fd()), unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		unix.Close(fd)
	}
}

// Drop lets go of a GPU, soon.
func (c *claims) Drop(uuid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.held[uuid]; h != nil && h.used {
		h.used, h.dropped = false, c.clock.Now()
		c.stir()
	}
}

func (c *claims) stir() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// others reports whether another cluster has a GPU, and whose.
func (c *claims) others(uuid string) (who string, yes bool) {
	c.mu.Lock()
	own := c.held[uuid] != nil
	c.mu.Unlock()
	if own || c.ignore {
		return "", false
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, claimAddr(uuid)); err {
	case nil:
	case unix.ECONNREFUSED, unix.ENOENT:
		return "", false
	default: // too many ask at once
		return "another cluster on the machine", true
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	switch {
	case err != nil:
		return "another cluster on the machine", true
	case int(cred.Uid) == os.Getuid():
		return fmt.Sprintf("another cluster of yours (process %d)", cred.Pid), true
	}
	return fmt.Sprintf("another user's process %d (%s)", cred.Pid, detect.UserName("/", int(cred.Uid))), true
}

// sawMiss reports whether a Claim has failed since it was last asked.
func (c *claims) sawMiss() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.missed
	c.missed = false
	return m
}

// run gives the supervisor what is used and lets go of what is not, until ctx ends.
func (c *claims) run(ctx context.Context) {
	for {
		var timer <-chan time.Time
		if wait := c.tidy(ctx); wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer:
		}
	}
}

// tidy does what is due and says when the next thing is; 0 = nothing is to be done.
func (c *claims) tidy(ctx context.Context) (wait time.Duration) {
	type job struct {
		uuid string
		h    *claim
		keep bool
	}
	var jobs []job
	c.mu.Lock()
	for uuid, h := range c.held {
		if h.admit(); wait == 0 || wait > claimEvery {
			wait = claimEvery
		}
		if h.used {
			if !h.kept {
				jobs = append(jobs, job{uuid, h, true})
			}
			continue
		}
		left := claimLinger - time.Duration(c.clock.Now()-h.dropped)
		if left <= 0 {
			jobs = append(jobs, job{uuid, h, false})
		} else if wait == 0 || left < wait {
			wait = left
		}
	}
	c.mu.Unlock()
	for _, j := range jobs {
		var err error
		if j.keep {
			err = c.keep(ctx, j.uuid, j.h)
		} else {
			err = c.release(ctx, j.uuid, j.h)
		}
		if err != nil && ctx.Err() == nil {
			c.log.Warn("the supervisor and the lock of a GPU", "gpu", j.uuid, "err", err)
			wait = claimLinger
		}
	}
	return wait
}

func (c *claims) keep(ctx context.Context, uuid string, h *claim) error {
	ctx, cancel := context.WithTimeout(ctx, claimBound)
	defer cancel()
	if err := c.super.StoreFD(ctx, claimPrefix+uuid, h.f); err != nil {
		return err
	}
	c.mu.Lock()
	h.kept = true
	c.mu.Unlock()
	return nil
}

// release closes a lock everywhere. Until the supervisor has, it is still ours: work that
// comes meanwhile takes it up again.
func (c *claims) release(ctx context.Context, uuid string, h *claim) error {
	ctx, cancel := context.WithTimeout(ctx, claimBound)
	defer cancel()
	c.mu.Lock()
	kept := h.kept
	c.mu.Unlock()
	if kept {
		if err := c.super.DropFD(claimPrefix + uuid); err != nil {
			return err
		}
		if err := c.super.Alive(ctx); err != nil { // it has read what was before
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h.kept = false
	if h.used {
		c.stir()
		return nil
	}
	delete(c.held, uuid)
	return h.f.Close()
}

// close ends it without letting go: what the supervisor has stays locked.
func (c *claims) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.held {
		h.f.Close()
	}
}
