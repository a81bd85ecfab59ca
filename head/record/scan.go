package record

import (
	"hash/crc32"
	"io"
	"os"

	"launcher/internal/errs"
	"launcher/wire"
)

// scanner walks the blocks of a segment.
type scanner struct {
	f      *os.File
	limit  int64 // do not look behind this offset; 0 = the file's size
	verify bool  // look at the bodies too

	off  int64 // where the next block is looked for
	good int64 // behind the last good block
	buf  []byte
	at   int64 // offset of buf
}

const (
	readAhead = 64 << 10
	maxNodes  = 1 << 20
)

// next gives the next block and the number of bytes before it that are damaged. A nil
// block is the end; what is behind good then is no block, and nothing good follows.
func (s *scanner) next() (b *block, damaged int64, err error) {
	if s.limit == 0 {
		st, err := s.f.Stat()
		if err != nil {
			return nil, 0, diskError(err, "cannot read output")
		}
		s.limit = st.Size()
	}
	for start := s.off; s.off+blockMin <= s.limit; s.off++ {
		h, err := s.bytes(s.off, int(min(blockMax, s.limit-s.off)))
		if err != nil {
			return nil, 0, err
		}
		blk, ok := parseBlock(h)
		if !ok || s.off+int64(blk.size)+int64(blk.body) > s.limit {
			continue // not here: look for where the next one begins
		}
		blk.off = s.off
		if s.verify {
			if _, err := s.body(&blk); errs.Is(err, errs.Corrupt) {
				continue
			} else if err != nil {
				return nil, 0, err
			}
		}
		damaged = s.off - start
		s.off += int64(blk.size) + int64(blk.body)
		s.good = s.off
		return &blk, damaged, nil
	}
	s.off = s.good
	return nil, 0, nil
}

// bytes gives n bytes at offset off, which are there.
func (s *scanner) bytes(off int64, n int) ([]byte, error) {
	if off < s.at || off+int64(n) > s.at+int64(len(s.buf)) {
		want := int(min(max(int64(n), readAhead), s.limit-off))
		if cap(s.buf) < want {
			s.buf = make([]byte, want)
		}
		s.buf, s.at = s.buf[:want], off
		if k, err := s.f.ReadAt(s.buf, off); k < want {
			s.buf = s.buf[:0]
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, diskError(err, "cannot read output")
		}
	}
	i := int(off - s.at)
	return s.buf[i : i+n], nil
}

// body reads the body of b.
func (s *scanner) body(b *block) ([]byte, error) {
	off := b.off + int64(b.size)
	body := make([]byte, b.body)
	if _, err := s.f.ReadAt(body, off); err != nil && err != io.EOF {
		return nil, diskError(err, "cannot read output")
	}
	if crc32.Checksum(body, castagnoli) != b.bodysum {
		return nil, errs.New(errs.Corrupt, "%s: damaged at offset %d", s.f.Name(), off)
	}
	return body, nil
}

// nodes adds the part b of the node table to what has been read of it.
func (s *scanner) nodes(b *block, have []nodeEntry) ([]nodeEntry, error) {
	body, err := s.body(b)
	if err != nil {
		return have, err
	}
	var more []nodeEntry
	if err := wire.Unmarshal(body, &more); err != nil {
		return have, errs.Wrap(errs.Corrupt, err, "%s: node table", s.f.Name())
	}
	if b.node > maxNodes {
		return have, errs.New(errs.Corrupt, "%s: node table of %d nodes", s.f.Name(), b.node)
	}
	for len(have) < int(b.node) {
		have = append(have, nodeEntry{}) // a part is damaged
	}
	return append(have[:b.node], more...), nil
}
