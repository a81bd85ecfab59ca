package head

import (
	"cmp"
	"context"
	"sync"
	"time"

	"launcher/head/core"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// request is a client's request that the core has not answered in full.
type request struct {
	mu      sync.Mutex
	replies []core.Reply // guarded by mu
	more    chan struct{}
}

// maxReplies bounds what waits for a client that does not read: of a Watch or a Down,
// only the newest state matters.
const maxReplies = 64

// reply gives a client what the core answered.
func (h *head) reply(e core.Reply) {
	h.mu.Lock()
	r := h.clients[e.ID]
	h.mu.Unlock()
	if r == nil {
		return
	}
	r.mu.Lock()
	if len(r.replies) >= maxReplies {
		r.replies = r.replies[1:]
	}
	r.replies = append(r.replies, e)
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// ask puts a request to the core and hands each reply to got until the last one, or
// until gone is closed.
func (h *head) ask(ctx context.Context, req any, gone <-chan struct{}, got func(any) error) error {
	id := h.clientID.Add(1)
	r := &request{more: make(chan struct{}, 1)}
	h.mu.Lock()
	h.clients[id] = r
	h.mu.Unlock()
	over := false
	defer func() {
		h.mu.Lock()
		delete(h.clients, id)
		h.mu.Unlock()
		if !over {
			h.event(core.ClientGone{ID: id})
		}
	}()
	if !h.post(item{ev: core.ClientReq{ID: id, Req: req}}) {
		return errEnding()
	}
	wait := stallAfter
	if _, watch := req.(wire.Watch); watch && h.journal.Stalled() != nil {
		wait = 0
	}
	stall := time.NewTimer(wait)
	defer stall.Stop()
	for {
		select {
		case <-r.more:
			stall.Stop()
		case <-stall.C:
			// Answers come in the order of the journal: with a full disk there are none, but
			// for those that what is safe can give.
			if err := h.journal.Stalled(); err != nil {
				v, ok, err2 := h.committed(req, err)
				switch {
				case err2 != nil:
					return err2
				case !ok:
					return errs.Wrap(errs.Unknown, err, "the head cannot write its journal")
				}
				if _, watch := req.(wire.Watch); !watch {
					return got(v)
				}
				if err := got(v); err != nil { // and more once there is room
					return err
				}
				continue
			}
			stall.Reset(stallAfter)
			continue
		case <-gone:
			return errs.New(errs.Cancelled, "nobody waits for the answer any more")
		case <-ctx.Done():
			return errEnding()
		}
		r.mu.Lock()
		replies := r.replies
		r.replies = nil
		r.mu.Unlock()
		for _, e := range replies {
			over = !e.More
			if e.Err != nil {
				return e.Err
			}
			if err := got(e.Resp); err != nil || over {
				return err
			}
		}
	}
}

func errEnding() error { return errs.New(errs.Unavailable, "the head is ending") }

// requestBound is how long a client may take to say what it wants.
const requestBound = 30 * time.Second

// serveRequest serves one request of a command or an SDK.
func (h *head) serveRequest(ctx context.Context, st *session.Stream) {
	defer st.Close()
	_ = st.SetReadDeadline(time.Now().Add(requestBound))
	typ, body, err := st.ReadMsg()
	if err != nil {
		return
	}
	_ = st.SetReadDeadline(time.Time{})
	req, err := decodeRequest(typ, body)
	if err == nil {
		err = h.answer(ctx, st, req)
	}
	if err != nil {
		_ = st.WriteErr(err)
	}
	_ = st.CloseWrite()
}

func (h *head) answer(ctx context.Context, st *session.Stream, req any) error {
	switch req.(type) {
	case wire.LogsRequest:
		return h.serveLogs(ctx, st, req.(wire.LogsRequest))
	case wire.Attend:
		return h.attend(ctx, st, req.(wire.Attend))
	case wire.TreePut:
		return h.putTree(st, req.(wire.TreePut))
	case wire.TreeGet:
		return h.getTree(ctx, st, req.(wire.TreeGet).Tree)
	case wire.OutputsRequest:
		v, err := h.outputs.await(ctx, req.(wire.OutputsRequest).Job, st.Unwanted())
		if err != nil {
			return err
		}
		return st.WriteMsg(wire.MsgOK, v)
	case wire.Process:
		return h.process(ctx, st, req.(wire.Process))
	case wire.Query:
		v, err := h.query(ctx, req.(wire.Query), st.Unwanted())
		if err != nil {
			return err
		}
		_ = st.SetWriteDeadline(time.Now().Add(writeBound))
		return st.WriteMsg(wire.MsgOK, v)
	case wire.Submit, wire.DrainRequest, wire.Update:
		// New work must be written down; nothing is promised that cannot be.
		if err := h.journal.Stalled(); err != nil {
			return errs.Wrap(errs.Unknown, err, "the head takes no new work: it cannot write its journal")
		}
	}
	say := func(v any) error {
		switch i := v.(type) {
		case wire.ClusterInfo:
			if h.remote() != nil {
				i.Broker = h.remote().Away()
			}
			i.Followers = h.follow.info()
			i.Trouble = cmp.Or(i.Trouble, h.logs.trouble())
			v = i
		case wire.JobInfo:
			h.outputs.fill(&i)
			v = i
		case []wire.JobInfo:
			for k := range i {
				h.outputs.fill(&i[k])
			}
		}
		_ = st.SetWriteDeadline(time.Now().Add(writeBound))
		return st.WriteMsg(wire.MsgOK, v)
	}
	switch req.(type) {
	case wire.InfoRequest, wire.NodesRequest, wire.PoolsRequest, wire.JobsRequest:
		// Not by way of the core, behind what waits for the disk.
		if stalled := h.journal.Stalled(); stalled != nil {
			if v, ok, err := h.committed(req, stalled); ok || err != nil {
				if err != nil {
					return err
				}
				return say(v)
			}
		}
	}
	return h.ask(ctx, req, st.Unwanted(), say)
}

// attend serves a command that answers questions. Machines that could not be reached
// without it are tried again at once.
func (h *head) attend(ctx context.Context, st *session.Stream, at wire.Attend) error {
	if st.Session().Peer().Role != secure.RoleClient {
		return errs.New(errs.Permission, "%s asks for what is typed at terminals", st.Session().Peer())
	}
	if h.o.Desk == nil {
		return errs.New(errs.Unbuilt, "this head asks nothing")
	}
	return h.o.Desk.Attend(ctx, st, at, func() {
		h.event(core.Retry{})
		h.do(func(*core.Core) {})
	})
}

// decodeRequest gives the struct of a request.
func decodeRequest(typ uint16, body []byte) (any, error) {
	switch typ {
	case wire.MsgInfo:
		return decode[wire.InfoRequest](body)
	case wire.MsgProcess:
		return decode[wire.Process](body)
	case wire.MsgSubmit:
		return decode[wire.Submit](body)
	case wire.MsgJobs:
		return decode[wire.JobsRequest](body)
	case wire.MsgWatch:
		return decode[wire.Watch](body)
	case wire.MsgTasks:
		return decode[wire.TasksRequest](body)
	case wire.MsgLogs:
		return decode[wire.LogsRequest](body)
	case wire.MsgCancel:
		return decode[wire.Cancel](body)
	case wire.MsgNodes:
		return decode[wire.NodesRequest](body)
	case wire.MsgPools:
		return decode[wire.PoolsRequest](body)
	case wire.MsgWhy:
		return decode[wire.Why](body)
	case wire.MsgDrain:
		return decode[wire.DrainRequest](body)
	case wire.MsgDown:
		return decode[wire.Down](body)
	case wire.MsgTrials:
		return decode[wire.TrialsRequest](body)
	case wire.MsgUpdate:
		return decode[wire.Update](body)
	case wire.MsgName:
		return decode[wire.NameRequest](body)
	case wire.MsgGroup:
		return decode[wire.GroupRequest](body)
	case wire.MsgQuery:
		return decode[wire.Query](body)
	case wire.MsgAttend:
		return decode[wire.Attend](body)
	case wire.MsgTreePut:
		return decode[wire.TreePut](body)
	case wire.MsgTreeGet:
		return decode[wire.TreeGet](body)
	case wire.MsgOutputs:
		return decode[wire.OutputsRequest](body)
	}
	return nil, errs.New(errs.Version, "this head does not know requests of type %#x", typ).Hint("bring the cluster up again with this version of launcher")
}

// serveLogs sends a job's output out of the record.
func (h *head) serveLogs(ctx context.Context, st *session.Stream, q wire.LogsRequest) error {
	info, ok, err := h.job(q.Job)
	if err != nil {
		return err
	}
	if !ok {
		return errs.New(errs.NotFound, "there is no job %d", q.Job).Hint("`launcher jobs --all` lists them")
	}
	if q.Follow && !info.State.Terminal() {
		// A client may ask before the first output or table has made the job's directory.
		if _, err := h.logs.grown(q.Job); err != nil {
			return err
		}
	}
	r, err := h.logs.reader()
	if err != nil {
		return err
	}
	tail, err := r.Tail(q)
	if err != nil {
		return err
	}
	defer tail.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(st.Session().Context(), cancel)
	defer stop()
	for {
		bell := h.bell(q.Job)
		if info, ok, err = h.job(q.Job); err != nil {
			return err
		}
		over := !ok || info.State.Terminal() && info.LogsDone
		var grown <-chan struct{}
		if q.Follow && !over {
			if grown, err = h.logs.grown(q.Job); err != nil {
				return err
			}
		}
		err := tail.Read(ctx, func(c wire.LogChunk) error {
			_ = st.SetWriteDeadline(time.Time{}) // a pager may stop reading for as long as it likes
			return st.WriteMsg(wire.MsgOK, c)
		})
		if err != nil || over || !q.Follow {
			return err
		}
		select {
		case <-grown:
		case <-bell:
		case <-st.Unwanted():
			return nil
		case <-ctx.Done():
			return errEnding()
		}
	}
}

// job gives a job's info; false when there is none. An error means that the head ends.
func (h *head) job(id wire.JobID) (info wire.JobInfo, ok bool, err error) {
	if !h.do(func(c *core.Core) { info, ok = c.Job(id) }) {
		err = errEnding()
	}
	return info, ok, err
}
