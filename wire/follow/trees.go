package follow

import (
	"io"
	"os"
	"path/filepath"
	"slices"

	"launcher/internal/disk"
	"launcher/internal/errs"
	"launcher/wire"
)

// Working directories of jobs, which the head keeps packed under their sums, are copied on a
// stream of their own, so that large ones do not hold the journal up:
//
//	head                                  follower
//	MsgTrees{Epoch, Keep}            ->   (all others are removed)
//	                                 <-   MsgHaveTrees{Names}
//	MsgTree... (of those that it lacks)
//
// again and again, whenever the head has other ones.
const (
	MsgTrees     uint16 = 0x0705
	MsgHaveTrees uint16 = 0x0706
	MsgTree      uint16 = 0x0707
)

// Trees names the working directories that are to be there.
type Trees struct {
	Epoch uint64
	Keep  []string
}

// HaveTrees names those that are.
type HaveTrees struct{ Names []string }

// Tree is a piece of one; the pieces of one follow each other.
type Tree struct {
	Name  string
	Data  []byte
	Final bool
}

const (
	// MaxTrees bounds the bytes of working directories in a follower's directory.
	MaxTrees = 512 << 20
	maxKeep  = 10_000
	treesDir = "trees"
)

// serveTrees takes working directories until the stream ends (nil).
func (c *Copies) serveTrees(st Stream, typ uint16, body []byte) (err error) {
	dir := filepath.Join(c.dir, treesDir)
	var cur *os.File // in which the pieces are put together
	defer func() {
		if cur != nil {
			_ = cur.Close()
			_ = os.Remove(cur.Name())
		}
	}()
	var keep []string
	size := int64(0)
	for {
		switch typ {
		case MsgTrees:
			var m Trees
			if err := wire.Unmarshal(body, &m); err != nil {
				return err
			}
			c.mu.Lock()
			err := c.refused(m.Epoch)
			c.mu.Unlock()
			if err != nil {
				return err
			}
			if keep = m.Keep; len(keep) > maxKeep {
				return errs.New(errs.Invalid, "%d working directories", len(keep))
			}
			var have HaveTrees
			if have.Names, size, err = keepTrees(dir, keep); err != nil {
				return errs.Wrap(errs.Unavailable, err, "the copies of working directories")
			}
			if err := st.WriteMsg(MsgHaveTrees, have); err != nil {
				return err
			}
		case MsgTree:
			var m Tree
			if err := wire.Unmarshal(body, &m); err != nil {
				return err
			}
			if !wire.IsTreeSum(m.Name) || !slices.Contains(keep, m.Name) {
				return errs.New(errs.Invalid, "%q is no working directory that was announced", m.Name)
			}
			if size += int64(len(m.Data)); size > MaxTrees {
				return errs.New(errs.Exhausted, "the copies of working directories would have more than %s", wire.Bytes(MaxTrees))
			}
			if cur == nil {
				if cur, err = os.CreateTemp(dir, ".new-"); err != nil {
					return errs.Wrap(errs.Unavailable, err, "the copies of working directories")
				}
			}
			_, err := cur.Write(m.Data)
			if m.Final {
				if err == nil {
					err = cur.Sync()
				}
				if cerr := cur.Close(); err == nil {
					err = cerr
				}
				if err == nil {
					err = os.Rename(cur.Name(), filepath.Join(dir, m.Name))
				}
				if err == nil {
					cur = nil
					err = disk.Sync(dir)
				}
			}
			if err != nil {
				return errs.Wrap(errs.Unavailable, err, "the copies of working directories")
			}
		default:
			return errs.New(errs.Corrupt, "a head sends message %#x", typ)
		}
		if typ, body, err = st.ReadMsg(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// keepTrees removes all but some, and says which of those are there.
func keepTrees(dir string, keep []string) (have []string, size int64, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, 0, err
	}
	ents, err := os.ReadDir(dir)
	for _, e := range ents {
		fi, ierr := e.Info()
		if ierr != nil || !slices.Contains(keep, e.Name()) || !wire.IsTreeSum(e.Name()) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
			continue
		}
		have, size = append(have, e.Name()), size+fi.Size()
	}
	return have, size, err
}

// InstallTrees copies the working directories that a follower has in from to the directory
// in which a head keeps them.
func InstallTrees(from, to string) error {
	ents, _ := os.ReadDir(filepath.Join(from, treesDir))
	for _, e := range ents {
		if !wire.IsTreeSum(e.Name()) {
			continue
		}
		if err := os.MkdirAll(to, 0o700); err != nil {
			return errs.Wrap(errs.Permission, err, "the working directories of jobs")
		}
		err := copyFile(filepath.Join(from, treesDir, e.Name()), filepath.Join(to, e.Name()), MaxTrees)
		if err == nil {
			err = disk.Sync(to)
		}
		if err != nil {
			return errs.Wrap(errs.Unavailable, err, "the working directories of jobs")
		}
	}
	return nil
}
