package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"launcher/agent/proc"
	"launcher/agent/tasks"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

const (
	// helloBound is how long a client may take to say Hello.
	helloBound = 10 * time.Second
	// numberBound is how long one waits for a node that the head has not greeted yet.
	numberBound = 60 * time.Second
	maxHello    = 1 << 20
)

// greet takes a client's Hello and answers it.
func (s *sdkServer) greet(ctx context.Context, c *sdkConn, pid int) (*sdkClient, error) {
	h, err := readHello(c)
	if err != nil {
		return nil, err
	}
	if h.Version != sdk.Version {
		return nil, errs.New(errs.Version, "the program speaks version %d with the agent, node %s version %d", h.Version, s.a.cfg.Node, sdk.Version).
			Hint("use the SDK of the cluster's own version")
	}
	if len(h.Nonce) != 16 || h.Kind != sdk.KindDriver && h.Kind != sdk.KindWorker {
		return nil, errs.New(errs.Corrupt, "a Hello of kind %d with a nonce of %d bytes", h.Kind, len(h.Nonce))
	}
	wait, cancel := context.WithTimeout(ctx, numberBound)
	defer cancel()
	select {
	case <-s.named:
	case <-wait.Done():
		return nil, errs.New(errs.Unavailable, "node %s has no head to tell it its number", s.a.cfg.Node).Hint("is the cluster up? `launcher status`")
	}
	if pid != 0 {
		h.PID = pid // the kernel's word
	}
	var cl *sdkClient
	var fail error
	s.turn(func(now int64) {
		if h.Client != 0 {
			cl, fail = s.back(now, &h, c)
		} else if h.Kind == sdk.KindWorker {
			cl, fail = s.workerHello(now, &h, c)
		} else {
			cl, fail = s.driverHello(now, &h, c)
		}
		if fail == nil {
			fail = s.welcome(cl, c)
		}
	})
	return cl, fail
}

// readHello reads the first frame, and nothing behind it.
func readHello(c *sdkConn) (h sdk.Hello, err error) {
	_ = c.c.SetReadDeadline(time.Now().Add(helloBound))
	defer func() { _ = c.c.SetReadDeadline(time.Time{}) }()
	var head [wire.FrameHeader]byte
	read := func(b []byte) error {
		for n := 0; n < len(b); {
			k, err := c.c.Read(b[n:])
			if err != nil {
				return errs.Wrap(errs.Corrupt, err, "a client that does not say Hello")
			}
			n += k
		}
		return nil
	}
	if err := read(head[:]); err != nil {
		return h, err
	}
	n, typ := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint16(head[4:])
	if typ != sdk.MsgHello || n < 4 || n > maxHello {
		return h, errs.New(errs.Corrupt, "instead of Hello came a frame of type %#x and length %d", typ, n)
	}
	body := make([]byte, n-4)
	if err := read(body); err != nil {
		return h, err
	}
	return h, wire.Unmarshal(body, &h)
}

// driverHello takes a new driver. a.mu is held.
func (s *sdkServer) driverHello(now int64, h *sdk.Hello, c *sdkConn) (*sdkClient, error) {
	id := s.core.NextClient()
	job := fmt.Sprintf("d%d-%d", s.number, id) // no other of the cluster has it
	terms, dirOf := wire.Terms{Limits: h.Limits}, uint32(0)
	if p, err := parseProc(h.Proc); err == nil {
		if !s.a.core.Runs(p) {
			return nil, errs.New(errs.NotFound, "process %s does not run on node %s", p, s.a.cfg.Node).Hint("unset LAUNCHER_PROC, which names another process, or run the program with `launcher run`")
		}
		job = strconv.FormatUint(uint64(p.Job), 10)
		if j := s.a.core.JobOf(p); j != nil {
			if terms.Priority = j.Spec.Priority; len(j.Spec.Limits) > 0 {
				terms.Limits = j.Spec.Limits
			}
			if s.a.trees.isPrivate(j, p, h.Dir) { // no other node has it, so it goes where its tasks do
				dirOf = s.number
			}
		}
	} else {
		h.Proc = ""
	}
	if h.Priority != nil {
		terms.Priority = *h.Priority
	}
	who := tasks.Client{Terms: terms, ID: id, Kind: sdk.KindDriver, Language: h.Language, Job: job, Name: h.Name, Proc: h.Proc, PID: h.PID, Program: h.Program, Dir: h.Dir, Path: h.Path, DirOf: dirOf}
	cl := &sdkClient{sdkRecord: sdkRecord{ID: id, Kind: h.Kind, Nonce: h.Nonce, Job: job, Name: h.Name, Proc: h.Proc, PID: h.PID, Start: startOf(h.PID)}, conn: c}
	if err := s.remember(cl); err != nil {
		return nil, err
	}
	if err := s.core.Connect(now, who); err != nil {
		return nil, err
	}
	s.clients[id] = cl
	s.programs.keep(job, h)
	s.logsTo(cl)
	s.warm(job, h)
	return cl, nil
}

// startOf is when a process was started, as the kernel counts; 0 = it is gone.
func startOf(pid int) uint64 {
	st, err := proc.ReadStat(pid)
	if err != nil || st.State == 'Z' {
		return 0
	}
	return st.Start
}

// keepBusy keeps the programs that are away, for want of anything to ask, but live. a.mu is
// held.
func (s *sdkServer) keepBusy(now int64) {
	for _, id := range s.core.LongAway(now) {
		if cl := s.clients[id]; cl != nil && cl.Start != 0 && startOf(cl.PID) == cl.Start {
			s.core.StillThere(now, id)
		}
	}
}

// workerHello takes a worker that this agent started. a.mu is held.
func (s *sdkServer) workerHello(now int64, h *sdk.Hello, c *sdkConn) (*sdkClient, error) {
	for _, cl := range s.clients {
		if cl.Kind != sdk.KindWorker || cl.Token != h.Token || cl.conn != nil {
			continue
		}
		cl.Nonce, cl.PID = h.Nonce, h.PID
		if err := s.remember(cl); err != nil {
			return nil, err
		}
		if w, ok := s.a.workers.Of(cl.ID); ok {
			h.PID = w.PID
		}
		if err := s.core.Connect(now, tasks.Client{ID: cl.ID, Kind: sdk.KindWorker, Language: h.Language, Name: cl.Name, PID: h.PID, Program: h.Program, Dir: h.Dir}); err != nil {
			return nil, err
		}
		cl.conn = c
		return cl, nil
	}
	return nil, errs.New(errs.Permission, "node %s has started no worker with this token", s.a.cfg.Node)
}

// back takes a client that an earlier agent knew. a.mu is held.
func (s *sdkServer) back(now int64, h *sdk.Hello, c *sdkConn) (*sdkClient, error) {
	cl := s.clients[h.Client]
	switch {
	case cl == nil || !bytes.Equal(cl.Nonce, h.Nonce) || cl.Kind != h.Kind:
		return nil, errs.New(errs.Fenced, "node %s does not know client %d any more: it was away for too long", s.a.cfg.Node, h.Client)
	case cl.conn != nil:
		return nil, errs.New(errs.Exists, "client %d of node %s is connected already", h.Client, s.a.cfg.Node)
	}
	cl.conn = c
	s.programs.keep(cl.Job, h)
	s.core.Back(now, cl.ID)
	s.logsTo(cl)
	return cl, nil
}

// welcome answers Hello. a.mu is held.
func (s *sdkServer) welcome(cl *sdkClient, c *sdkConn) error {
	index, pins, err := s.store.Attach(cl.ID)
	if err != nil {
		return err
	}
	s.store.Name(cl.ID, "pid "+utoa(uint32(cl.PID)))
	files := []*os.File{index, pins}
	if cl.Kind == sdk.KindWorker {
		if cl.control == nil {
			return errs.New(errs.Internal, "worker %d has no control page", cl.ID)
		}
		files = append(files, cl.control.file)
	}
	c.put(wire.AppendFrame(nil, sdk.MsgWelcome, wire.Marshal(sdk.Welcome{
		Version: sdk.Version, Number: s.number, Client: cl.ID, Node: s.a.cfg.Node, Cluster: s.a.cfg.Cluster, Job: cl.Job, Inline: sdk.InlineMax, Nonce: cl.Nonce, CPUs: s.a.total.CPU,
	})), files...)
	s.mark(cl)
	return nil
}

// logsTo has a driver told what the workers of its job print.
func (s *sdkServer) logsTo(cl *sdkClient) {
	if cl.Kind != sdk.KindDriver {
		return
	}
	s.logMu.Lock()
	defer s.logMu.Unlock()
	s.drivers[cl.Job] = append(s.drivers[cl.Job], cl.conn)
}

func (s *sdkServer) noLogsTo(cl *sdkClient, c *sdkConn) {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	if l := slices.DeleteFunc(s.drivers[cl.Job], func(x *sdkConn) bool { return x == c }); len(l) > 0 {
		s.drivers[cl.Job] = l
	} else {
		delete(s.drivers, cl.Job)
	}
}
