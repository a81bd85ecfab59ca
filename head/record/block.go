package record

import (
	"encoding/binary"
	"hash/crc32"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

// A segment of a job's output is a row of blocks:
//
//	magic u32 "LBLK" · size u16 of this header · kind u8 · zero u8
//	body u32 length of the body · raw u32 length of the log frames in it
//	node u32 number in the node table · tasks u32 how many numbers follow at the end, or manyTasks
//	at u64 offset of the first log frame in the job's log
//	from u64, to u64 the stretch of the node's spool that this is
//	low u32, high u32 the least and the greatest task index in it
//	bodysum u32 CRC32C of the body
//	tasks × u32 the task indices in it, sorted
//	sum u32 CRC32C of the header up to here
//	body: zstd of log frames, or the node table
//
// little-endian. To find a task's output one reads the headers and the bodies of the
// blocks that have any of it.
const (
	blockMagic = 0x4b4c424c
	blockFixed = 60
	blockMin   = blockFixed + 4
	maxList    = 512
	manyTasks  = ^uint32(0)
	blockMax   = blockFixed + 4*maxList + 4
	kindOutput = 1
	kindNodes  = 2
	maxBody    = wire.MaxFrame
	maxRaw     = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type block struct {
	kind      uint8
	body, raw uint32
	node      uint32
	at        int64
	from, to  int64
	low, high uint32
	tasks     []uint32 // nil = too many to list
	many      bool
	bodysum   uint32
	size      int   // of the header
	off       int64 // of the header in its segment, when read
}

// has reports whether the block may have output of a task; any = of every task.
func (b *block) has(task int64) bool {
	if task < 0 {
		return true
	}
	if task < int64(b.low) || task > int64(b.high) {
		return false
	}
	if b.many {
		return true
	}
	_, ok := slices.BinarySearch(b.tasks, uint32(task))
	return ok
}

// append appends header and body.
func (b *block) append(dst, body []byte) []byte {
	start := len(dst)
	n := uint32(len(b.tasks))
	if b.many {
		n = manyTasks
	}
	dst = binary.LittleEndian.AppendUint32(dst, blockMagic)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(blockMin+4*len(b.tasks)))
	dst = append(dst, b.kind, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(body)))
	dst = binary.LittleEndian.AppendUint32(dst, b.raw)
	dst = binary.LittleEndian.AppendUint32(dst, b.node)
	dst = binary.LittleEndian.AppendUint32(dst, n)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(b.at))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(b.from))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(b.to))
	dst = binary.LittleEndian.AppendUint32(dst, b.low)
	dst = binary.LittleEndian.AppendUint32(dst, b.high)
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(body, castagnoli))
	for _, t := range b.tasks {
		dst = binary.LittleEndian.AppendUint32(dst, t)
	}
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
	return append(dst, body...)
}

// parseBlock reads the header at the start of h; ok is false when there is none.
func parseBlock(h []byte) (b block, ok bool) {
	if len(h) < blockMin || binary.LittleEndian.Uint32(h) != blockMagic {
		return b, false
	}
	size := int(binary.LittleEndian.Uint16(h[4:]))
	if size < blockMin || size > blockMax || size > len(h) || size%4 != 0 ||
		crc32.Checksum(h[:size-4], castagnoli) != binary.LittleEndian.Uint32(h[size-4:]) {
		return b, false
	}
	n := binary.LittleEndian.Uint32(h[20:])
	b = block{
		kind: h[6], body: binary.LittleEndian.Uint32(h[8:]), raw: binary.LittleEndian.Uint32(h[12:]),
		node: binary.LittleEndian.Uint32(h[16:]), many: n == manyTasks,
		at: int64(binary.LittleEndian.Uint64(h[24:])), from: int64(binary.LittleEndian.Uint64(h[32:])), to: int64(binary.LittleEndian.Uint64(h[40:])),
		low: binary.LittleEndian.Uint32(h[48:]), high: binary.LittleEndian.Uint32(h[52:]), bodysum: binary.LittleEndian.Uint32(h[56:]),
		size: size,
	}
	if !b.many {
		if int(n) != (size-blockMin)/4 {
			return b, false
		}
		b.tasks = make([]uint32, n)
		for i := range b.tasks {
			b.tasks[i] = binary.LittleEndian.Uint32(h[blockFixed+4*i:])
		}
	}
	return b, b.body <= maxBody && b.raw <= maxRaw && b.at >= 0
}

// summarize checks that raw is whole log frames and notes which tasks are in it.
func (b *block) summarize(raw []byte) error {
	seen := map[uint32]struct{}{}
	b.low, b.high = ^uint32(0), 0
	for rest := raw; len(rest) > 0; {
		f, _, n, err := wire.ParseLogFrame(rest)
		if err == nil && n == 0 {
			err = errs.New(errs.Corrupt, "a log frame that is cut short")
		}
		if err != nil {
			return errs.Wrap(errs.Unknown, err, "at byte %d of a stretch of output", len(raw)-len(rest))
		}
		b.low, b.high = min(b.low, f.Index), max(b.high, f.Index)
		if len(seen) <= maxList {
			seen[f.Index] = struct{}{}
		}
		rest = rest[n:]
	}
	if b.many = len(seen) > maxList; !b.many {
		for t := range seen {
			b.tasks = append(b.tasks, t)
		}
		slices.Sort(b.tasks)
	}
	b.raw = uint32(len(raw))
	return nil
}
