package spool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/wire"
)

// stream is the output of one job: segment files in a directory of their own. The loop
// alone appends; base, end and segs are also read by others, under Spool.mu.
type stream struct {
	job    wire.JobID
	dir    string
	segs   []int64 // start offsets; the file's name
	end    int64
	acked  int64
	file   *os.File // of the last segment, nil when a new one is due
	start  int64    // of file
	noMove bool     // the file system has no splice

	paused  error
	since   time.Time // paused since
	retry   time.Time // the next attempt
	pause   time.Duration
	failed  bool
	pipes   map[*pipe]bool
	changed chan struct{} // closed at the next change; nil = nobody waits
	gone    bool          // forgotten
}

func (st *stream) path(start int64) string {
	return filepath.Join(st.dir, fmt.Sprintf("%016x.log", start))
}

// openStream takes up what an earlier agent left of a job and mends its end.
func openStream(dir string, job wire.JobID) (*stream, error) {
	st := &stream{job: job, dir: dir, pipes: map[*pipe]bool{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the spool of job %d", job)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the spool of job %d", job)
	}
	for _, n := range names {
		start, err := strconv.ParseInt(strings.TrimSuffix(n.Name(), ".log"), 16, 64)
		if err == nil && strings.HasSuffix(n.Name(), ".log") {
			st.segs = append(st.segs, start)
		}
	}
	slices.Sort(st.segs)
	if len(st.segs) == 0 {
		return st, nil
	}
	st.start = st.segs[len(st.segs)-1]
	f, err := os.OpenFile(st.path(st.start), os.O_RDWR, 0)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the spool of job %d", job)
	}
	size, err := mend(f)
	if err != nil {
		f.Close()
		return nil, errs.Wrap(errs.Unknown, err, "the spool of job %d", job)
	}
	st.file, st.end, st.acked = f, st.start+size, st.segs[0]
	return st, nil
}

// mend makes a segment end with a whole frame. The last writer may have been killed
// behind the header or in the middle of the data: the data has left the pipe, so it is
// kept, and the header is made to say how much there is.
func mend(f *os.File) (size int64, err error) {
	b, err := os.ReadFile(f.Name())
	if err != nil {
		return 0, err
	}
	off := 0
	for off < len(b) {
		_, _, n, err := wire.ParseLogFrame(b[off:])
		if err != nil { // not ours: nothing behind it can be told apart
			break
		}
		if n == 0 {
			rest := len(b) - off - wire.LogFrameHeader
			if rest <= 0 {
				break
			}
			if err := setLength(f, int64(off), rest); err != nil {
				return 0, err
			}
			off = len(b)
			break
		}
		off += n
	}
	if off < len(b) {
		if err := f.Truncate(int64(off)); err != nil {
			return 0, err
		}
	}
	return int64(off), nil
}

// setLength corrects the length in the header of the frame at off.
func setLength(f *os.File, off int64, n int) error {
	_, err := f.WriteAt([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}, off+4)
	return err
}

// append moves up to n bytes from a pipe, which has them, to the end of the stream, as
// one frame. It gives how many it moved; with an error too some may have been, and the
// stream ends with a whole frame in any case.
func (st *stream) append(p *pipe, n int, segment int64, now int64) (moved int, err error) {
	if st.file != nil && st.end-st.start >= segment {
		f := st.file
		st.file = nil
		if err := f.Close(); err != nil { // a network file system tells of a full disk here
			return 0, err
		}
	}
	if st.file == nil {
		f, err := os.OpenFile(st.path(st.end), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return 0, err
		}
		st.file, st.start = f, st.end
	}
	at := st.end - st.start
	head := wire.LogFrame{Stream: p.stream, Length: uint32(n), Index: p.proc.Index, Attempt: p.proc.Attempt, Rank: p.proc.Rank, Time: now}
	if _, err := st.file.WriteAt(head.Append(st.head()), at); err != nil {
		st.cut(at)
		return 0, err
	}
	moved, err = st.move(p.fd, at+wire.LogFrameHeader, n)
	switch {
	case moved == 0:
		st.cut(at)
	case moved < n:
		if e := setLength(st.file, at, moved); e != nil {
			return moved, errors.Join(err, e)
		}
	}
	return moved, err
}

func (st *stream) head() []byte { return make([]byte, 0, wire.LogFrameHeader) }

// cut takes back a header without data. That it fails is no harm: what is behind the
// end is written over, and Open cuts it.
func (st *stream) cut(at int64) { _ = st.file.Truncate(at) }

// move takes n bytes out of the pipe into the file.
func (st *stream) move(from int, at int64, n int) (moved int, err error) {
	to := int(st.file.Fd())
	for moved < n && !st.noMove {
		off := at + int64(moved)
		k, err := unix.Splice(from, nil, to, &off, n-moved, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EINVAL && moved == 0:
			st.noMove = true
		case err != nil:
			return moved, err
		case k == 0:
			return moved, nil
		}
		moved += int(max(k, 0))
	}
	if !st.noMove {
		return moved, nil
	}
	// Without splice the data passes through here, so an agent killed between the two
	// calls loses this piece. There is no better way on such a file system.
	b := make([]byte, n)
	k, err := unix.Read(from, b)
	if err != nil || k <= 0 {
		return 0, err
	}
	_, err = st.file.WriteAt(b[:k], at)
	return k, err
}
