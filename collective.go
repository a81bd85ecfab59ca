package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"time"

	"launcher/collectives"
	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/shm"
	"launcher/wire"
)

// joinBound is how long the node's agent may take to let a rank into its group: it may
// be on its way back after a restart.
const joinBound = time.Minute

// Collective joins the group of this run's ranks. What it gives serves the functions of
// package collectives:
//
//	comm, err := launcher.Collective(ctx)
//	err = collectives.AllReduce(comm, gradient, collectives.Mean)
//
// ctx bounds the joining only; joining does not wait for other ranks. Outside a run, and
// in a run of one rank, the group is of one. A rank joins once: Close before joining
// again.
func Collective(ctx context.Context) (*collectives.Comm, error) {
	if !InRun() || WorldSize() == 1 {
		return collectives.Single()
	}
	ctx, cancel := context.WithTimeout(ctx, joinBound)
	defer cancel()
	where, proc := os.Getenv("LAUNCHER_SOCKET"), os.Getenv("LAUNCHER_PROC")
	for {
		conn, err := sockpath.Dial(ctx, where)
		if err == nil {
			var c *collectives.Comm
			c, err = join(ctx, conn, proc)
			conn.Close()
			if err == nil {
				return c, nil
			}
		}
		// A connection that breaks is made again; an answer is an answer.
		if errs.KindOf(err) != errs.Unknown && !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Lost) || errs.Is(err, errs.NotFound) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, errs.Wrap(errs.Unavailable, err, "the agent of this run does not answer on %s", where).
				Hint("the run may have been ended, or its node's agent killed")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// join asks for the group's memory on a fresh connection and attaches to it.
func join(ctx context.Context, conn *net.UnixConn, proc string) (*collectives.Comm, error) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	body, err := json.Marshal(collectives.JoinRequest{Proc: proc})
	if err != nil {
		return nil, err
	}
	if err := wire.WriteFrame(conn, collectives.MsgJoin, body); err != nil {
		return nil, err
	}
	// The descriptor comes with the first bytes of the answer.
	buf := make([]byte, 64<<10)
	n, files, err := shm.RecvFDs(conn, buf)
	keep := (*os.File)(nil)
	defer func() {
		for _, f := range files {
			if f != keep {
				f.Close()
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	typ, body, err := wire.ReadFrame(io.MultiReader(bytes.NewReader(buf[:n]), conn))
	if err != nil {
		return nil, err
	}
	switch {
	case typ == wire.MsgError:
		var refused struct {
			Kind  string   `json:"kind"`
			Msg   string   `json:"msg"`
			Hints []string `json:"hints"`
		}
		if err := json.Unmarshal(body, &refused); err != nil {
			return nil, errs.Wrap(errs.Corrupt, err, "the agent's answer")
		}
		return nil, &errs.Error{Kind: kindOf(refused.Kind), Msg: refused.Msg, Hints: refused.Hints}
	case typ != collectives.MsgJoined || len(files) != 1:
		return nil, errs.New(errs.Corrupt, "the agent answered frame %#04x with %d descriptors to joining the group", typ, len(files))
	}
	var a collectives.JoinAnswer
	if err := json.Unmarshal(body, &a); err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "the agent's answer")
	}
	keep = files[0]
	return collectives.Attach(keep, a.Rank)
}
