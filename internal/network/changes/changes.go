// Package changes reports what anyone on the host removes from its network: interfaces, addresses, and tables of the packet filter. Of the latter it
// reports what is added, too.
//
// The kernel announces changes by netlink. A report is a hint that something may be different; who gets it looks at the host. When
// announcements were lost, because too many came at once, one report says so.
package changes

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Change is one report. One field is set.
type Change struct {
	Removed string // an interface was removed, or left its bridge
	Changed string // an interface was set down or lost an address
	Table   string // a table of nftables, as "inet name", was removed or lost a chain or rules
	Grown   string // a table of nftables got a chain or rules, or the policy of a chain changed
	Lost    bool   // reports were lost: anything may have changed
}

// netfilterTables is the multicast group of nftables (linux/netfilter/nfnetlink.h).
const netfilterTables = 7

// receiveBuffer is how many bytes of announcements the kernel keeps until they are read.
const receiveBuffer = 1 << 20

// Watch reports the changes of the network namespace of the calling process until ctx ends. It calls report from two goroutines; started is called
// once, when no later change is missed.
func Watch(ctx context.Context, started func(), report func(Change)) error {
	links, err := subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return err
	}
	defer links.Close()
	tables, err := subscribe(unix.NETLINK_NETFILTER, netfilterTables)
	if err != nil {
		return err
	}
	defer tables.Close()
	defer context.AfterFunc(ctx, func() { _ = errors.Join(links.Close(), tables.Close()) })()
	started()
	ended := make(chan error, 2)
	go func() { ended <- receive(links, ofLink, report) }()
	go func() { ended <- receive(tables, ofTable, report) }()
	first := <-ended
	_ = errors.Join(links.Close(), tables.Close()) // ends the other one
	second := <-ended
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(first, second)
}

func subscribe(protocol int, groups ...int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("netlink %d: %w", protocol, err)
	}
	f := os.NewFile(uintptr(fd), "netlink")
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, g := range groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g)
		}
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("netlink %d: %w", protocol, err), f.Close())
	}
	return f, nil
}

// receive reads announcements until f is closed.
func receive(f *os.File, read func(syscall.NetlinkMessage) (Change, bool), report func(Change)) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			report(Change{Lost: true})
			continue
		case err != nil:
			return err
		}
		list, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			report(Change{Lost: true})
			continue
		}
		for _, m := range list {
			if c, ok := read(m); ok {
				report(c)
			}
		}
	}
}

func ofLink(m syscall.NetlinkMessage) (Change, bool) {
	switch m.Header.Type {
	case unix.RTM_DELLINK:
		name := text(m.Data, unix.SizeofIfInfomsg, unix.IFLA_IFNAME)
		return Change{Removed: name}, name != ""
	case unix.RTM_NEWLINK:
		if len(m.Data) < unix.SizeofIfInfomsg || binary.NativeEndian.Uint32(m.Data[8:])&unix.IFF_UP != 0 {
			return Change{}, false
		}
		name := text(m.Data, unix.SizeofIfInfomsg, unix.IFLA_IFNAME)
		return Change{Changed: name}, name != ""
	case unix.RTM_DELADDR:
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return Change{}, false
		}
		i, err := net.InterfaceByIndex(int(binary.NativeEndian.Uint32(m.Data[4:])))
		if err != nil {
			return Change{}, false // it was removed, which is a report of its own
		}
		return Change{Changed: i.Name}, true
	}
	return Change{}, false
}

// Messages of nftables (linux/netfilter/nf_tables.h). The first attribute of each names the table.
const (
	nftNewChain  = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWCHAIN
	nftNewRule   = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE
	nftDelTable  = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE
	nftDelChain  = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELCHAIN
	nftDelRule   = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELRULE
	nftDelSet    = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELSET
	sizeofNfgen  = 4
	nftTableName = 1
)

var nftFamilies = map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}

func ofTable(m syscall.NetlinkMessage) (Change, bool) {
	grown := false
	switch m.Header.Type {
	case nftNewChain, nftNewRule:
		grown = true
	case nftDelTable, nftDelChain, nftDelRule, nftDelSet:
	default:
		return Change{}, false
	}
	name := text(m.Data, sizeofNfgen, nftTableName)
	if name == "" {
		return Change{}, false
	}
	name = nftFamilies[m.Data[0]] + " " + name
	if grown {
		return Change{Grown: name}, true
	}
	return Change{Table: name}, true
}

// text returns the first attribute of a type behind a header; "" when there is none.
func text(data []byte, header int, typ uint16) string {
	for at := header; at+unix.SizeofRtAttr <= len(data); {
		size := int(binary.NativeEndian.Uint16(data[at:]))
		if size < unix.SizeofRtAttr || at+size > len(data) {
			return ""
		}
		if binary.NativeEndian.Uint16(data[at+2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == typ {
			value := data[at+unix.SizeofRtAttr : at+size]
			if end := bytes.IndexByte(value, 0); end >= 0 {
				value = value[:end]
			}
			return strings.ToValidUTF8(string(value), "")
		}
		at += (size + 3) &^ 3
	}
	return ""
}
