package agent

import (
	"context"
	"io"
	"sync"

	"launcher/agent/core"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// maxAsks bounds the questions of the head that are being answered at once.
const maxAsks = 16

// answerer answers one kind of question (wire.Query.What) with JSON.
type answerer func(ctx context.Context, args []byte) ([]byte, error)

// questions are what the head may ask this node: the parts of the agent say in open()
// what they answer, by answers. Nothing of it passes the core.
type questions struct {
	mu   sync.Mutex
	by   map[string]answerer // guarded by mu
	busy int                 // guarded by mu
}

// answers says who answers questions of a kind. The answer is due within
// wire.QueryBound, when ctx ends.
func (q *questions) answers(what string, f answerer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.by == nil {
		q.by = map[string]answerer{}
	}
	q.by[what] = f
}

// begin finds who answers and counts the question; done must follow when there is no error.
func (q *questions) begin(what string) (answerer, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f := q.by[what]
	switch {
	case f == nil:
		return nil, errs.New(errs.Version, "this agent does not know the question %.40q", what).Hint("the node runs another version of launcher")
	case q.busy >= maxAsks:
		return nil, errs.New(errs.Exhausted, "%d questions are being answered already", q.busy).Hint("ask again in a moment")
	}
	q.busy++
	return f, nil
}

func (q *questions) done() {
	q.mu.Lock()
	q.busy--
	q.mu.Unlock()
}

// asked answers a question of the head.
func (h *headLink) asked(ctx context.Context, c *headConn, m wire.Ask) {
	tell := func(b []byte, err error) {
		if err == nil && len(b) > wire.MaxTold {
			err = errs.New(errs.Exhausted, "the answer has %s, at most %s fit", wire.Bytes(int64(len(b))), wire.Bytes(wire.MaxTold)).Hint("ask for less: of one job, or one task")
		}
		t := wire.Told{ID: m.ID, JSON: b}
		if err != nil {
			t = wire.Told{ID: m.ID, Err: errs.ToWire(err)}
		}
		h.send(c, core.ToHead{Type: wire.MsgTold, Msg: t})
		c.poke()
	}
	f, err := h.a.questions.begin(m.What)
	if err != nil {
		tell(nil, err)
		return
	}
	h.a.wg.Go(func() {
		defer h.a.questions.done()
		ctx, cancel := context.WithTimeout(ctx, wire.QueryBound)
		defer cancel()
		tell(f(ctx, m.Args))
	})
}

// query asks the nodes of the cluster (node "" = all) on behalf of a program here.
func (h *headLink) query(ctx context.Context, q wire.Query) (wire.QueryAnswer, error) {
	return askHead[wire.QueryAnswer](ctx, h, wire.MsgQuery, q)
}

// askHead makes one request to the head, as a command would, for an answer of one frame.
func askHead[T any](ctx context.Context, h *headLink, typ uint16, req any) (resp T, err error) {
	ctx, cancel := context.WithTimeout(ctx, queryWait)
	defer cancel()
	s, err := h.session(ctx)
	if err != nil {
		return resp, err
	}
	st, err := s.Open(ctx, wire.StreamRequest)
	if err != nil {
		return resp, err
	}
	defer st.Close()
	stop := context.AfterFunc(ctx, func() { _ = st.CloseWith(context.Cause(ctx)) })
	defer stop()
	if err := st.WriteMsg(typ, req); err != nil {
		return resp, err
	}
	return readAnswer[T](st)
}

// queryWait is how long a request to the head may take, its wait for a session included.
const queryWait = 3 * wire.QueryBound

func readAnswer[T any](st *session.Stream) (resp T, err error) {
	typ, body, err := st.ReadMsg()
	switch {
	case err == io.EOF:
		return resp, errs.New(errs.Unavailable, "the other side ended before it answered")
	case err != nil:
		return resp, err
	case typ == wire.MsgError:
		var w errs.Wire
		if err := wire.Unmarshal(body, &w); err != nil {
			return resp, err
		}
		return resp, w.FromWire()
	case typ != wire.MsgOK:
		return resp, errs.New(errs.Corrupt, "a message of type %#x where %#x is due", typ, wire.MsgOK)
	}
	return resp, wire.Unmarshal(body, &resp)
}
