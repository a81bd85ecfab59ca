// Package shm holds memory that processes share: anonymous files (memfd) mapped by
// all of them, the futex that lets one sleep until another changed a word of it, and
// the passing of descriptors over unix sockets.
//
// A segment has no name in any file system: whoever is to map it gets its descriptor,
// by inheritance or by SendFDs, and when the last holder ends the memory is gone.
// Its size is fixed and sealed at creation, so that no holder can cut the file under
// another one's feet (which would be SIGBUS there).
package shm
