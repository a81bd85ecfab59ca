package wire

// Directories that go by way of the head, between machines that do not share files: the
// working directories of jobs, and checkpoints. On a stream of kind StreamRequest, both ways:
//
//	TreePut -> TreeWanted; then, if it is wanted, a tar stream to its end -> struct{}
//	TreeGet -> struct{}, then a tar stream
const (
	MsgTreePut uint16 = 0x0331
	MsgTreeGet uint16 = 0x0332
)

// Tree names one: a working directory by the SHA-256 of its tar stream (hexadecimal), or a
// checkpoint by its job and its path in the record.
type Tree struct {
	Sum  string
	Job  JobID
	Path string // checkpoints/[INDEX/]step-N.aATTEMPT, of a TreePut with /rank-R
}

// TreePut offers one to the head.
type TreePut struct{ Tree Tree }

// TreeWanted is false where the head has it.
type TreeWanted struct{ Wanted bool }

// TreeGet asks for one.
type TreeGet struct{ Tree Tree }
