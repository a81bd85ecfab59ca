// Package store is the memory of a node's objects: the segments that programs fill, the
// index that says where each object is, and files for what does not fit.
//
// Memory is taken segment by segment, as programs ask for it, and never more than the
// node may use and the kernel would give. A segment has one producer. What is freed in it
// goes back to that producer's next Grant, and a segment that has been empty for a while
// is asked back whole. Nothing is moved: an object stays where it was written until it is
// freed, or until it is spilled because room is short.
//
// An object's bytes are let go of in three steps: its entry is marked, so that no new
// reader can pin it; every CPU passes a barrier, so that pins made before are seen; and
// the pins are looked through. Only what nobody has pinned goes.
//
// Index, pins and segments are memory files that the supervisor holds too. An agent that
// starts again finds everything in them: what was being written is finished or void, and
// programs keep reading meanwhile.
package store
