package store

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/shm/objects"
	"launcher/wire"
)

// A spilled object is a file: a header of 64 bytes, the job's name, the object.
//
//	0  u32 magic "LXS1", u32 length of the job's name
//	8  id, 16 bytes
//	24 u64 size, u32 form, u32 client that made it
//	40 u32 CRC-32C of the object, u32 of the header so far and the job's name, 16 bytes 0
//
// Its name is the id and a number that no other file has. It is complete when it has that
// name without the ending part.
const (
	spillMagic  = 0x3153584c
	spillHeader = 64
	suffix      = ".object"
	part        = ".part"
	// diskPause is after how long a disk that could not be written is tried again.
	diskPause = 2 * time.Second
	// batch is spilled at a time, and then looked again.
	batch = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (s *Store) path(id wire.ObjectID, n uint32) string {
	return filepath.Join(s.cfg.Dir, fmt.Sprintf("%s-%d%s", id, n, suffix))
}

func spillHead(o *object, sum uint32) []byte {
	b := make([]byte, spillHeader, spillHeader+len(o.job))
	binary.LittleEndian.PutUint32(b, spillMagic)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(o.job)))
	copy(b[8:], o.id[:])
	binary.LittleEndian.PutUint64(b[24:], uint64(o.size))
	binary.LittleEndian.PutUint32(b[32:], o.form)
	binary.LittleEndian.PutUint32(b[36:], o.maker)
	binary.LittleEndian.PutUint32(b[40:], sum)
	binary.LittleEndian.PutUint32(b[44:], headSum(b, o.job))
	return append(b, o.job...)
}

func headSum(b []byte, job string) uint32 {
	return crc32.Update(crc32.Checksum(b[:44], castagnoli), castagnoli, []byte(job))
}

// evict makes objects leave memory, which are viewed: to files, or for good if they are
// copies. It gives how many did.
func (s *Store) evict(list []*object) (gone int) {
	for len(list) > 0 && s.ctx.Err() == nil {
		n, size := 0, int64(0)
		for n < len(list) && (n == 0 || size+list[n].size <= batch) {
			size += list[n].size
			n++
		}
		gone += s.evictSome(list[:n])
		list = list[n:]
	}
	s.mu.Lock()
	for _, o := range list {
		s.unview(o)
	}
	s.mu.Unlock()
	return gone
}

func (s *Store) evictSome(list []*object) (gone int) {
	for _, o := range list {
		if !o.copied {
			s.writeOut(o)
		}
	}
	s.mu.Lock()
	var marked []*object
	for _, o := range list {
		o.views--
		if o.state == sealed && o.views == 0 && (o.copied || o.path != "") {
			s.index.SetState(o.slot, objects.Deleting)
			o.state, o.wanted = leaving, false
			marked = append(marked, o)
			continue
		}
		s.unwrite(o)
		if o.state == dying {
			kick(s.reap)
		}
	}
	s.mu.Unlock()
	if len(marked) == 0 {
		return 0
	}
	barrier()
	s.mu.Lock()
	defer s.mu.Unlock()
	pins := s.pinned()
	for _, o := range marked {
		switch {
		case o.doomed:
			s.unwrite(o)
			s.kill(o)
			kick(s.reap)
		case o.wanted || o.views > 0 || pins[o.pin] || !s.leave(o):
			if pins[o.pin] {
				o.pinned = time.Now()
			}
			s.unwrite(o)
			o.state = sealed
			s.index.SetState(o.slot, objects.Sealed)
		default:
			gone++
		}
	}
	s.serveAll()
	return gone
}

// leave ends the stay in memory of an object that is in its file, or that is a copy. mu
// must be held.
func (s *Store) leave(o *object) bool {
	if o.copied {
		s.vacate(o)
		delete(s.objs, o.id)
		s.news.add(Evicted{o.id})
		return true
	}
	e, err := s.index.Insert(objects.Entry{ID: o.id, State: objects.Spilled, Segment: o.first.Segment, Offset: uint64(o.first.Offset), Size: uint64(o.size),
		Form: o.form, LastUse: o.number})
	if err != nil {
		return false
	}
	s.vacate(o)
	o.slot, o.state = e.Slot, spilled
	s.spilled += o.size
	s.spills++
	return true
}

// writeOut writes the object's file; o.path is "" when it could not be.
func (s *Store) writeOut(o *object) {
	s.mu.Lock()
	if s.spillErr != nil && time.Now().Before(s.spillAt) {
		s.mu.Unlock()
		return
	}
	mem, err := o.seg.bytes(false)
	s.number++
	o.number = s.number
	s.mu.Unlock()
	path := s.path(o.id, o.number)
	if err == nil {
		err = writeSpill(path, o, mem[o.offset:o.offset+o.size])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		o.path, s.spillErr = path, nil
		return
	}
	if s.spillErr == nil {
		s.cfg.Log.Warn("objects cannot be spilled to disk", "dir", s.cfg.Dir, "error", err)
	}
	s.spillErr = errs.Wrap(errs.Exhausted, err, "spilling objects to %s", s.cfg.Dir)
	s.spillAt = time.Now().Add(diskPause)
}

func writeSpill(path string, o *object, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path+part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(spillHead(o, crc32.Checksum(data, castagnoli)))
	if err == nil {
		_, err = f.Write(data)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+part, path)
	}
	if err != nil {
		_ = os.Remove(path + part)
	}
	return err
}

// unwrite removes the file of an object that stays in memory, or is freed. mu must be held.
func (s *Store) unwrite(o *object) {
	if path := o.path; path != "" {
		o.path = ""
		// Removing a large file takes a while.
		s.wg.Go(func() { _ = os.Remove(path) })
	}
}

// unfile removes the file of a spilled object. mu must be held.
func (s *Store) unfile(o *object) {
	s.spilled -= o.size
	s.spills--
	s.unwrite(o)
}

// Restore brings a spilled object back to memory; Restored or Lost tells of the end. Of
// one that is in memory Restored comes at once.
func (s *Store) Restore(id wire.ObjectID) {
	s.start()
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objs[id]
	switch {
	case o == nil || o.doomed:
		s.news.add(Restored{id, errs.New(errs.NotFound, "object %s is not on this node", id)})
	case o.state == spilled:
		o.state = restoring
		s.wg.Go(func() { s.restore(o) })
	case o.state != restoring:
		o.wanted = true
		s.use(o)
		s.news.add(Restored{ID: id})
	}
}

func (s *Store) restore(o *object) {
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.Patience)
	defer cancel()
	// Room comes first: those who wait for it must not keep others from reading.
	e, mem, err := s.room(ctx, s.own, o.size)
	damaged := false
	if err == nil {
		s.readers <- struct{}{}
		if err = readSpill(o, mem); err != nil {
			damaged = true
		}
		<-s.readers
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || o.doomed {
		if e.Length > 0 {
			_ = s.own.arena.Free(e)
			s.segs[e.Segment].empty = time.Now()
			s.serveAll()
		}
		switch {
		case o.doomed:
			s.index.Delete(o.slot, false)
			s.forget(o)
		case damaged:
			s.index.Delete(o.slot, false)
			s.forget(o)
			s.news.add(Lost{o.id, err})
		default:
			o.state = spilled
			s.news.add(Restored{o.id, err})
		}
		return
	}
	s.index.Delete(o.slot, false)
	s.unfile(o)
	o.seg, o.offset = s.segs[e.Segment], e.Offset
	i, _ := o.seg.place(o.offset, o.size)
	if err := s.insert(o, i); err != nil { // cannot be: an entry has just become free
		delete(s.objs, o.id)
		s.news.add(Lost{o.id, err})
		return
	}
	s.news.add(Restored{ID: o.id})
}

// readSpill fills mem from the object's file.
func readSpill(o *object, mem []byte) error {
	f, err := os.Open(o.path)
	if err != nil {
		return errs.Wrap(errs.Lost, err, "object %s was spilled", o.id)
	}
	defer f.Close()
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	h, sum, err := readHead(f)
	if err == nil && (h.id != o.id || h.size != o.size || h.form != o.form) {
		err = errs.New(errs.Corrupt, "the file is that of another object")
	}
	if err == nil {
		if _, err = io.ReadFull(f, mem); err == nil && crc32.Checksum(mem, castagnoli) != sum {
			err = errs.New(errs.Corrupt, "its checksum is wrong")
		}
	}
	if err != nil {
		return errs.Wrap(errs.Lost, err, "object %s was spilled to %s, which is damaged", o.id, o.path)
	}
	return nil
}

// readHead reads a file up to the object itself.
func readHead(r io.Reader) (o object, sum uint32, err error) {
	b := make([]byte, spillHeader)
	if _, err := io.ReadFull(r, b); err != nil {
		return o, 0, err
	}
	n := binary.LittleEndian.Uint32(b[4:])
	if binary.LittleEndian.Uint32(b) != spillMagic || n > 4096 {
		return o, 0, errs.New(errs.Corrupt, "it is no file of an object")
	}
	job := make([]byte, n)
	if _, err := io.ReadFull(r, job); err != nil {
		return o, 0, err
	}
	o = object{id: wire.ObjectID(b[8:24]), size: int64(binary.LittleEndian.Uint64(b[24:])), form: binary.LittleEndian.Uint32(b[32:]),
		maker: binary.LittleEndian.Uint32(b[36:]), job: string(job)}
	if binary.LittleEndian.Uint32(b[44:]) != headSum(b, o.job) || o.size <= 0 {
		return o, 0, errs.New(errs.Corrupt, "its head is damaged")
	}
	return o, binary.LittleEndian.Uint32(b[40:]), nil
}

// headOf reads the head of the file at path, and checks that all of it is there.
func headOf(path string) (o object, err error) {
	f, err := os.Open(path)
	if err != nil {
		return o, err
	}
	defer f.Close()
	if o, _, err = readHead(bufio.NewReader(f)); err != nil {
		return o, err
	}
	st, err := f.Stat()
	if err == nil && st.Size() != spillHeader+int64(len(o.job))+o.size {
		err = errs.New(errs.Corrupt, "%s is not complete", path)
	}
	return o, err
}
