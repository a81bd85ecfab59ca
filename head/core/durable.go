package core

import (
	"launcher/wire"
)

// Durable is what the journal says: everything that outlives the head. It is changed by
// Apply only.
type Durable struct {
	machines map[wire.Kind]Maker
}

// NewDurable is the Durable of an empty journal.
func NewDurable(machines map[wire.Kind]Maker) *Durable { return &Durable{machines: machines} }

// DecodeDurable reads a snapshot that Encode made.
func DecodeDurable(b []byte, machines map[wire.Kind]Maker) (*Durable, error) {
	return NewDurable(machines), nil
}

// Encode gives a snapshot, the same bytes for equal Durables.
func (d *Durable) Encode() []byte { return nil }

// Equal compares two Durables by their snapshots.
func (d *Durable) Equal(o *Durable) bool { return string(d.Encode()) == string(o.Encode()) }

// Apply applies one record. An error means that the record cannot follow what came
// before it: the journal is damaged or this is a bug.
func (d *Durable) Apply(r Record) error { return nil }
