// Package channel takes values from one process to others of the same machine, through
// memory that they share: one writes, each reader gets every value, in order. Its layout is
// docs/actors.md section 5; the Python SDK has the same.
//
//	c, err := channel.Create(1, 2, 1<<20)      // here; c.Address() goes to the other process
//	w, err := c.Writer()
//	err = w.Write(ctx, channel.Value{Data: b})
//
//	c, err := channel.Open(address)            // there
//	r, err := c.Reader(0)
//	v, err := r.Read(ctx)                      // good until the next Read
package channel

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"launcher/internal/errs"
	"launcher/shm"
)

const (
	magic   = 0x314E4E4148434E4C
	version = 1
	party   = 64 // bytes of a party's block, and of the head of a slot
	page    = 4096

	atClosed = 20
	atCount  = 0 // in a party's block
	atAsleep = 4
	atPID    = 8
	atBegan  = 16
)

var order = binary.LittleEndian

// Channel is a channel's memory.
type Channel struct {
	seg            *shm.Segment
	mem            []byte
	readers, slots int
	size, data     int
	address        Address
}

// Address is by which another process of the same user can open a channel while the
// process that made it lives.
type Address struct {
	PID   int
	FD    int
	Token uint64
}

// Create makes a channel. slots is how many values are on their way at most, size that of a
// value that has its place already; larger ones get memory of their own. Memory is taken as
// it is touched.
func Create(readers, slots, size int) (*Channel, error) {
	if readers < 1 || slots < 1 || size < 1 || readers > math.MaxInt16 || slots > math.MaxInt16 || size > math.MaxInt32 {
		return nil, errs.New(errs.Invalid, "a channel with %d readers and %d slots of %d bytes", readers, slots, size)
	}
	size = (size + 2*party - 1) / party * party
	f, err := shm.CreateSized("launcher-channel", int64(dataAt(readers)+slots*size), false)
	if err != nil {
		return nil, err
	}
	seg, err := shm.Open(f, true)
	if err != nil {
		f.Close()
		return nil, err
	}
	var token [8]byte
	rand.Read(token[:])
	m := seg.Bytes()
	order.PutUint64(m, magic)
	order.PutUint32(m[8:], version)
	order.PutUint32(m[12:], uint32(readers))
	order.PutUint32(m[16:], uint32(slots))
	order.PutUint64(m[24:], uint64(size))
	copy(m[32:], token[:])
	return parse(seg, Address{os.Getpid(), int(f.Fd()), order.Uint64(token[:])})
}

// Open gets a channel of another process.
func Open(a Address) (*Channel, error) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", a.PID, a.FD), os.O_RDWR, 0)
	if err != nil {
		return nil, errs.Wrap(errs.Lost, err, "the channel of process %d cannot be opened here", a.PID)
	}
	seg, err := shm.Open(f, true)
	if err != nil {
		f.Close()
		return nil, err
	}
	c, err := parse(seg, a)
	if err != nil {
		seg.Close()
	}
	return c, err
}

func parse(seg *shm.Segment, a Address) (*Channel, error) {
	m := seg.Bytes()
	if len(m) < page || order.Uint64(m) != magic {
		return nil, errs.New(errs.Corrupt, "descriptor %d of process %d is no channel", a.FD, a.PID)
	}
	if v := order.Uint32(m[8:]); v != version {
		return nil, errs.New(errs.Version, "the channel has layout %d, this program knows %d", v, version)
	}
	if order.Uint64(m[32:]) != a.Token {
		return nil, errs.New(errs.Lost, "the channel of process %d is gone", a.PID)
	}
	c := &Channel{seg: seg, mem: m, readers: int(order.Uint32(m[12:])), slots: int(order.Uint32(m[16:])), size: int(order.Uint64(m[24:])), address: a}
	c.data = dataAt(c.readers)
	if c.readers < 1 || c.slots < 1 || c.size <= party || c.slots > (len(m)-c.data)/c.size {
		return nil, errs.New(errs.Corrupt, "the header of the channel of process %d is wrong", a.PID)
	}
	return c, nil
}

// Address is what Open takes, in another process.
func (c *Channel) Address() Address { return c.address }

// Close ends the channel for all: who waits to write is told at once, readers after the
// last value.
func (c *Channel) Close() {
	c.word(atClosed).Store(1)
	for i := range c.readers + 1 {
		shm.FutexWake(c.raw(block(i)+atCount), math.MaxInt32)
	}
}

// Free unmaps the memory; no end of it may be used any more. The channel goes on for others.
func (c *Channel) Free() error { return c.seg.Close() }

func dataAt(readers int) int { return (party*(readers+2) + page - 1) / page * page }

// block is where a party's block is: the writer's is 0, that of reader i is i + 1.
func block(number int) int { return party * (number + 1) }

func (c *Channel) raw(at int) *uint32 { return (*uint32)(unsafe.Pointer(&c.mem[at])) }

func (c *Channel) word(at int) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&c.mem[at])) }

func (c *Channel) slot(count uint32) []byte {
	at := c.data + int(count%uint32(c.slots))*c.size
	return c.mem[at : at+c.size]
}

// began is when a process began; 0 if it is over.
func began(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b[max(0, strings.LastIndexByte(string(b), ')')):]), " ")
	f := strings.Fields(after)
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return 0
	}
	n, _ := strconv.ParseUint(f[19], 10, 64)
	return n
}
