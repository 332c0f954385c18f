package image

import (
	"bytes"
	"fmt"
	"io"
)

// Devices returns the tags of the devices of an image that Write made.
func Devices(r io.ReaderAt) ([]string, error) {
	var b [superOffset + superSize + maxDevices*slotSize]byte
	n, err := r.ReadAt(b[:], 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	super := b[superOffset:]
	if n < superOffset+superSize || le.Uint32(super) != magic {
		return nil, fmt.Errorf("no EROFS superblock")
	}
	count := int(le.Uint16(super[86:]))
	if count > maxDevices || le.Uint16(super[88:]) != superSlotsOffset && count > 0 || n < superOffset+superSize+count*slotSize {
		return nil, fmt.Errorf("device table of %d is not ours", count)
	}
	tags := make([]string, count)
	for i := range tags {
		slot := super[superSize+i*slotSize:]
		tag, _, _ := bytes.Cut(slot[:maxTag+1], []byte{0})
		tags[i] = string(tag)
	}
	return tags, nil
}
