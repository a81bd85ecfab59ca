package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/follow"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// journalDir is a head's journal in its state directory, followDir where a node keeps a
// copy of it in its own.
const (
	journalDir = "journal"
	followDir  = "follow"
	dirsDir    = "dirs" // a head's, of jobs' working directories
)

// seenBound is how long a node may take to say whether the head answers it.
const seenBound = 4 * time.Second

// copies finds what the cluster's nodes on this host have of the journal, the best first.
func copies(dir string) (out []follow.Found) {
	at, _ := filepath.Glob(filepath.Join(dir, "nodes", "*", followDir))
	for _, d := range at {
		out = append(out, follow.Look(d)...)
	}
	slices.SortFunc(out, func(a, b follow.Found) int { return follow.Compare(b, a) })
	return out
}

// seen is what is known here of the head of the cluster in dir.
func seen(ctx context.Context, dir string) (s backends.HeadSeen) {
	if c := copies(dir); len(c) > 0 && c[0].Whole {
		s.Copy, s.Of, s.Last = true, c[0].Epoch, c[0].Last
	}
	ctx, cancel := context.WithTimeout(ctx, seenBound)
	defer cancel()
	nodes, _ := filepath.Glob(filepath.Join(dir, "nodes", "*"))
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, n := range nodes[:min(len(nodes), 64)] {
		wg.Go(func() {
			e := headOf(ctx, n)
			mu.Lock()
			defer mu.Unlock()
			s.Epoch = max(s.Epoch, e)
		})
	}
	wg.Wait()
	return s
}

// headOf is the epoch of the head that answers by way of a node.
func headOf(ctx context.Context, node string) wire.Epoch {
	se, err := session.DialUnix(ctx, filepath.Join(node, "agent.sock"), session.Config{Role: secure.RoleClient, Name: "host"})
	if err != nil {
		return 0
	}
	defer se.Close()
	st, err := se.Open(ctx, wire.StreamRequest)
	if err != nil {
		return 0
	}
	if d, ok := ctx.Deadline(); ok {
		_ = st.SetDeadline(d)
	}
	var i wire.ClusterInfo
	if st.WriteMsg(wire.MsgInfo, wire.InfoRequest{}) != nil || read(st, wire.MsgOK, &i) != nil {
		return 0
	}
	return i.HeadEpoch
}

// installCopy gives a new head the best copy of the journal that there is here.
func installCopy(dir string) error {
	c := copies(dir)
	if len(c) == 0 || !c[0].Whole {
		return errs.New(errs.NotFound, "no node here has a copy of the head's journal")
	}
	journal := filepath.Join(dir, journalDir)
	if err := os.RemoveAll(journal); err != nil {
		return errs.Wrap(errs.Permission, err, "the state of a head")
	}
	if err := follow.Install(c[0], journal); err != nil {
		return err
	}
	at, _ := filepath.Glob(filepath.Join(dir, "nodes", "*", followDir))
	for _, d := range at {
		if err := follow.InstallTrees(d, filepath.Join(dir, dirsDir)); err != nil {
			return err
		}
	}
	return nil
}

// endGhost ends a head of an older term than the one that is asked for, and removes what
// it has: it was replaced while nobody could tell it. One of a newer term stays, and is an
// error.
func (s *Server) endGhost(ctx context.Context, dir string, m headAsk) error {
	var c wire.HeadConfig
	b, err := os.ReadFile(filepath.Join(dir, "head.config"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = wire.Unmarshal(b, &c)
	}
	switch {
	case err != nil:
		return errs.Wrap(errs.Corrupt, err, "the state of a head")
	case c.Term == m.Config.Term:
		return nil
	case c.Term > m.Config.Term:
		return errs.New(errs.Fenced, "a newer head of the cluster (term %d) is here", c.Term)
	}
	for _, args := range [][]string{{"head-supervise", "--dir", dir}, {"head", "--dir", dir}} { // nothing brings the second back
		for _, pid := range processesOf(args) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if err := headIsGone(ctx, dir); err != nil {
		return err
	}
	return s.dropHead(dir, m.ID)
}

// processesOf finds this user's processes of the command launcher ARGS.
func processesOf(args []string) (pids []int) {
	ents, _ := os.ReadDir("/proc")
	for _, e := range ents {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue
		}
		if words := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00"); len(words) > 1 && slices.Equal(words[1:], args) {
			pids = append(pids, pid)
		}
	}
	return pids
}
