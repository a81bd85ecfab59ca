package head

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/follow"
	"launcher/wire/session"
)

// trees keeps copies of jobs' working directories with a follower until ctx ends: a job goes
// on after the loss of this machine only where they can be had.
func (f *followers) trees(ctx context.Context, n *follower) {
	wait := time.Duration(0)
	for ctx.Err() == nil {
		var good time.Time
		err := f.sendTrees(ctx, n, &good)
		if ctx.Err() == nil && err != nil {
			f.h.log.Info("working directories are not copied", "node", n.conn.node, "err", err)
			n.treesAre(err.Error())
		}
		wait = longer(wait, good)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// sendTrees does so on one stream, and says since when the follower has had them all.
func (f *followers) sendTrees(ctx context.Context, n *follower, good *time.Time) error {
	opening, stop := context.WithTimeout(ctx, followBound)
	st, err := n.conn.s.Open(opening, wire.StreamFollow)
	stop()
	if err != nil {
		return err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { _ = st.Close() })()
	var last []string
	lacks := true // or it is not known
	for {
		if keep := f.h.newestTrees(); lacks || !slices.Equal(keep, last) {
			last = keep
			have, err := tellTrees(st, follow.Trees{Epoch: uint64(n.epoch), Keep: keep})
			if err != nil {
				return err
			}
			lacks = false
			for _, name := range keep {
				if slices.Contains(have, name) {
					continue
				}
				if err := f.h.sendTree(st, name); err != nil {
					return err
				}
				lacks = true // until it says that it has it
			}
		}
		if !lacks && good.IsZero() {
			*good = time.Now()
			n.treesAre("")
		}
		select {
		case <-time.After(followLook):
		case <-ctx.Done():
			return ctx.Err()
		case <-n.conn.s.Done():
			return n.conn.s.Err()
		}
	}
}

// treesAre says what keeps the follower from having the working directories; "" = nothing.
func (n *follower) treesAre(why string) {
	n.f.mu.Lock()
	defer n.f.mu.Unlock()
	n.trees = why
}

// newestTrees names the working directories that were wanted last, as many as a follower takes.
func (h *head) newestTrees() (names []string) {
	ents, _ := os.ReadDir(filepath.Join(h.state, "dirs"))
	var all []fs.FileInfo
	for _, e := range ents {
		if fi, err := e.Info(); err == nil && wire.IsTreeSum(fi.Name()) {
			all = append(all, fi)
		}
	}
	slices.SortFunc(all, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	size := int64(0)
	for _, fi := range all {
		if size += fi.Size(); size > follow.MaxTrees {
			break
		}
		names = append(names, fi.Name())
	}
	slices.Sort(names)
	return names
}

func tellTrees(st *session.Stream, m follow.Trees) ([]string, error) {
	_ = st.SetDeadline(time.Now().Add(followBound))
	if err := st.WriteMsg(follow.MsgTrees, m); err != nil {
		return nil, err
	}
	typ, body, err := st.ReadMsg()
	if err != nil {
		return nil, err
	}
	if typ != follow.MsgHaveTrees {
		return nil, followerErr(typ, body)
	}
	var have follow.HaveTrees
	err = wire.Unmarshal(body, &have)
	return have.Names, err
}

// followerErr is the error that a message is in place of an answer.
func followerErr(typ uint16, body []byte) error {
	if typ != wire.MsgError {
		return errs.New(errs.Corrupt, "a follower answers with message %#x", typ)
	}
	var w errs.Wire
	if err := wire.Unmarshal(body, &w); err != nil {
		return err
	}
	return w.FromWire()
}

func (h *head) sendTree(st *session.Stream, name string) error {
	file, err := os.Open(filepath.Join(h.state, "dirs", name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the next look does not name it any more
	}
	if err != nil {
		return err
	}
	defer file.Close()
	buf := make([]byte, 256<<10)
	for {
		k, err := io.ReadFull(file, buf)
		final := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !final {
			return err
		}
		_ = st.SetDeadline(time.Now().Add(followBound))
		if err := st.WriteMsg(follow.MsgTree, follow.Tree{Name: name, Data: buf[:k], Final: final}); err != nil || final {
			return err
		}
	}
}
