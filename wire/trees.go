package wire

import "regexp"

// Directories that go by way of the head, between machines that do not share files: the
// working directories of jobs, checkpoints, and outputs. On a stream of kind StreamRequest,
// both ways; tar streams are compressed (zstd):
//
//	TreePut -> TreeWanted; then, if it is wanted, a tar stream to its end -> struct{}
//	TreeGet -> struct{}, then a tar stream
//	OutputsRequest -> Outputs, when no more of them is on its way
const (
	MsgTreePut uint16 = 0x0331
	MsgTreeGet uint16 = 0x0332
	MsgOutputs uint16 = 0x0333
)

// Tree names one: a working directory by the SHA-256 of its tar stream (hexadecimal), or a
// checkpoint or outputs by their job and path in the record.
type Tree struct {
	Sum  string
	Job  JobID
	Path string // checkpoints/[INDEX/]step-N.aATTEMPT/rank-R or outputs/INDEX.aATTEMPT/RANK
}

var treeSum = regexp.MustCompile(`^[0-9a-f]{64}$`)

// IsTreeSum reports whether a name has the form of a Tree's Sum.
func IsTreeSum(name string) bool { return treeSum.MatchString(name) }

// TreePut offers one to the head.
type TreePut struct {
	Tree Tree
	Why  string // why there is none, of outputs: then nothing follows
}

// Into is a directory that outputs are brought into.
type Into struct {
	Dir   string
	Token string // as JobSpec.DirToken
	Tag   string // whose they are: several may come into one directory at a time
}

// OutputsRequest asks to bring the outputs of a job's tasks that are over to the directory
// that it was submitted from.
type OutputsRequest struct{ Job JobID }

// Outputs is what became of a job's outputs.
type Outputs struct {
	Files   int // that came
	Bytes   int64
	Waiting int      // tasks whose outputs the head has still
	At      string   // where it has them
	Why     string   // why they wait
	Failed  []string // why outputs did not leave their node
}

// TreeWanted is false where the head has it.
type TreeWanted struct{ Wanted bool }

// TreeGet asks for one.
type TreeGet struct{ Tree Tree }
