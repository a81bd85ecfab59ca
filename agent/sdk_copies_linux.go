package agent

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"

	"launcher/agent/tasks"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// Copies of this node's objects that other nodes keep (put with copies). The connection by
// which this node refers to another's objects also tells that node what to keep.

// copyEffect performs what the reactor wants of copies. a.mu is held.
func (s *sdkServer) copyEffect(e tasks.Effect) {
	switch e := e.(type) {
	case tasks.Copy:
		b := s.borrowOf(e.Number)
		b.copies[e.ID] = e.Body
		b.frame(sdk.MsgPeerCopy, e.Body)
	case tasks.Uncopy:
		if b := s.peers.borrows[e.Number]; b != nil {
			delete(b.copies, e.ID)
			b.frame(sdk.MsgPeerUncopy, e.ID[:])
		}
	case tasks.Choose:
		s.wg.Go(func() {
			ctx, cancel := context.WithTimeout(s.ctx, queryWait)
			defer cancel()
			on, err := s.chooseKeepers(ctx, e.Want-len(e.Not), e.Not)
			if err != nil {
				s.a.log.Debug("no node for one more copy of an object", "object", e.ID, "err", err)
				return
			}
			s.turn(func(now int64) { _ = s.core.Copy(now, e.ID, e.Want, on...) })
		})
	case tasks.Watch:
		s.a.links.dir.watch(e.Number)
	}
}

// copied: a node keeps a copy, or cannot. a.mu is held.
func (s *sdkServer) copied(now int64, number uint32, body []byte) error {
	if len(body) < 16 {
		return errs.New(errs.Corrupt, "PeerCopied is cut short")
	}
	id, why := wire.ObjectID(body[:16]), string(body[16:])
	s.core.Copied(now, id, number, why)
	if b := s.peers.borrows[number]; b != nil && why != "" {
		delete(b.copies, id)
	}
	for _, ch := range s.peers.copying[id] {
		select {
		case ch <- why:
		default:
		}
	}
	return nil
}

// chooseKeepers finds n nodes to keep a copy: on other machines before others of this one.
func (s *sdkServer) chooseKeepers(ctx context.Context, n int, not []uint32) ([]uint32, error) {
	list, err := s.nodeList(ctx)
	if err != nil {
		return nil, err
	}
	host, up := "", 0
	for i := range list {
		if list[i].State == "up" {
			up++
		}
		if list[i].ID == s.a.cfg.Node {
			host = list[i].Host
		}
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b wire.NodeInfo) int {
		switch {
		case (a.Host == host) == (b.Host == host):
			return 0
		case a.Host == host:
			return 1
		}
		return -1
	})
	var out []uint32
	for i := range list {
		x := &list[i]
		if x.State == "up" && x.ID != s.a.cfg.Node && x.Number != 0 && !slices.Contains(not, x.Number) && len(out) < n {
			out = append(out, x.Number)
		}
	}
	if len(out) < n {
		return nil, errs.New(errs.Exhausted, "a value with %d copies needs as many nodes that are up, and there are %d", n+len(not)+1, up)
	}
	return out, nil
}

// askCopies has copies made of an object that was put here, and waits for them.
func (s *sdkServer) askCopies(ctx context.Context, args []any) (any, error) {
	var id wire.ObjectID
	want := 0
	if len(args) == 2 {
		switch x := args[0].(type) {
		case []byte:
			copy(id[:], x)
		case string:
			copy(id[:], x)
		}
		switch n := args[1].(type) {
		case int64:
			want = int(n) - 1
		case uint64:
			want = int(n) - 1
		}
	}
	if want < 1 || want > maxCopies {
		return nil, errs.New(errs.Invalid, "an object with %d copies; there may be 1 to %d", want+1, maxCopies+1)
	}
	on, err := s.chooseKeepers(ctx, want, nil)
	if err != nil {
		return nil, err
	}
	ch := make(chan string, want)
	s.turn(func(now int64) {
		if err = s.core.Copy(now, id, want, on...); err == nil {
			s.peers.copying[id] = append(s.peers.copying[id], ch)
		}
	})
	if err != nil {
		return nil, err
	}
	defer s.turn(func(int64) {
		l := slices.DeleteFunc(s.peers.copying[id], func(x chan string) bool { return x == ch })
		if s.peers.copying[id] = l; len(l) == 0 {
			delete(s.peers.copying, id)
		}
	})
	for {
		var have, of int
		s.turn(func(int64) { have, of = s.core.Copies(id) })
		if have >= of {
			return nil, nil
		}
		select {
		case why := <-ch:
			if why != "" {
				return nil, errs.New(errs.Exhausted, "another node cannot keep a copy of object %s: %s", id, strings.TrimSpace(why))
			}
		case <-ctx.Done():
			return nil, errs.New(errs.Timeout, "%d of %d copies of object %s were made in time", have, of, id)
		}
	}
}

// maxCopies is on how many other nodes an object is kept at most.
const maxCopies = 16
