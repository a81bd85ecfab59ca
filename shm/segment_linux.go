package shm

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
)

// Segment is shared memory mapped into this process. Bytes stays valid until Close;
// using it afterwards is a fault, so Close only when no goroutine of this process
// still looks at it.
type Segment struct {
	file     *os.File
	mem      []byte
	writable bool
}

// Create makes a segment of size bytes, all zero, mapped read-write here. name shows in
// /proc/PID/maps and is no identity. Its memory is reserved at once: an error of kind
// errs.Exhausted comes now, never a SIGBUS later. Its size is sealed.
func Create(name string, size int) (*Segment, error) {
	if size <= 0 {
		return nil, errs.New(errs.Invalid, "a shared segment %q of %d bytes", name, size)
	}
	if room := Room(); int64(size) > room {
		return nil, errs.New(errs.Exhausted, "shared segment %q of %d bytes: only %d bytes of memory are left to this process", name, size, room).
			Hint("lower [objects] memory, or give the node more memory")
	}
	f, err := CreateSized(name, int64(size), true)
	if err != nil {
		return nil, err
	}
	s, err := mapFile(f, size, true)
	if err != nil {
		f.Close()
	}
	return s, err
}

// CreateFile makes an empty memory file without mapping it: for state that is read and
// written like a file and has to outlive a process whose supervisor holds the descriptor.
// It may grow; seals may be put on it.
func CreateFile(name string) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	// Kernels before 6.3 do not know the flag that makes the file not executable.
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, errs.Wrap(errs.Exhausted, err, "memory file %q", name)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// CreateSized makes a memory file of a size that is sealed, all zero, without mapping it.
// With reserve its memory is taken at once: an error comes now, never a SIGBUS later. Else
// pages come as they are touched.
func CreateSized(name string, size int64, reserve bool) (*os.File, error) {
	f, err := CreateFile(name)
	if err != nil {
		return nil, err
	}
	fd := int(f.Fd())
	err = unix.Ftruncate(fd, size)
	for again := err == nil && reserve; again; again = errors.Is(err, unix.EINTR) {
		err = unix.Fallocate(fd, 0, 0, size)
	}
	if err != nil {
		err = errs.Wrap(errs.Exhausted, err, "shared segment %q of %d bytes", name, size).
			Hint("lower [objects] memory, or give the node more memory")
	} else {
		err = Seal(f, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Open maps a segment that came by descriptor. It takes f over: Close closes it. The
// size must be sealed, or another holder could cut the file while we read it.
func Open(f *os.File, writable bool) (*Segment, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "shared segment %s", f.Name())
	}
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return nil, errs.New(errs.Corrupt, "descriptor %s is not a sealed memory segment", f.Name())
	}
	if st.Size() <= 0 || st.Size() != int64(int(st.Size())) {
		return nil, errs.New(errs.Corrupt, "shared segment %s has %d bytes", f.Name(), st.Size())
	}
	return mapFile(f, int(st.Size()), writable)
}

func mapFile(f *os.File, size int, writable bool) (*Segment, error) {
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, errs.Wrap(errs.Exhausted, err, "mapping %d bytes of shared segment %s", size, f.Name())
	}
	return &Segment{file: f, mem: mem, writable: writable}, nil
}

// Seal adds seals (unix.F_SEAL_*) to a memory file. With F_SEAL_FUTURE_WRITE mappings
// made before stay writable and all later ones are read-only.
func Seal(f *os.File, seals int) error {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return errs.Wrap(errs.Internal, err, "sealing %s", f.Name())
	}
	return nil
}

// Bytes is the mapped memory.
func (s *Segment) Bytes() []byte { return s.mem }

// File is the descriptor to pass on; it stays owned by the segment.
func (s *Segment) File() *os.File { return s.file }

// Prefault makes every page present, so that the first touch of each costs nothing
// later. It is a matter of speed only, so a kernel without it (before 5.14) is no error.
func (s *Segment) Prefault() {
	how := unix.MADV_POPULATE_READ
	if s.writable {
		how = unix.MADV_POPULATE_WRITE
	}
	for unix.Madvise(s.mem, how) == unix.EINTR {
	}
}

// Close unmaps and closes. The memory itself lives on while another process has it.
func (s *Segment) Close() error {
	if s.mem == nil {
		return nil
	}
	err := unix.Munmap(s.mem)
	s.mem = nil
	return errors.Join(err, s.file.Close())
}
