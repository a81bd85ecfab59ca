package launcher

import (
	"encoding/binary"

	"launcher/wire"
	"launcher/wire/sdk"
)

type (
	objectID = wire.ObjectID
	taskID   = wire.ObjectID
)

// parseExec reads an Exec frame; it keeps b.
func parseExec(c *client, b []byte) (*order, error) {
	const head = 16 + 16 + 6*4
	if len(b) < head {
		return nil, short("Exec")
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	t := &order{task: taskID(b), fn: sdk.FuncID(b[16:]), attempt: u32(32), sequence: u32(36), returns: u32(40), flags: u32(44), more: make(chan struct{}, 1)}
	deps, about := int(u32(48)), int(u32(52))
	b = b[head:]
	if about > len(b) || deps > len(b)/32 {
		return nil, short("Exec")
	}
	t.about, b = b[:about], b[about:]
	t.in = arguments{c: c, large: t.flags&sdk.SubmitLarge != 0, deps: make([]dep, deps)}
	for i := range t.in.deps {
		d := &t.in.deps[i]
		if len(b) < 16 {
			return nil, short("Exec")
		}
		d.id = objectID(b)
		kind, form, size, rest, ok := cutValueHead(b[16:])
		if !ok || kind != sdk.Shared && size > uint64(len(rest)) {
			return nil, short("Exec")
		}
		d.kind, d.form, b = kind, form, rest
		if kind != sdk.Shared {
			d.data, b = rest[:size:size], rest[size:]
		}
	}
	t.in.payload = b
	return t, nil
}
