// Package s3 keeps blobs in a bucket of an S3 server that any number of replicas share.
//
//	PREFIX/blobs/<algorithm>/<first two digits>/<digits>   a blob
//	PREFIX/uploads/<id>/data                               the multipart upload of a blob that is being received
//	PREFIX/uploads/<id>/<offset>-<random>                  the bytes after its last part, while no one holds the upload
//
// Invariants: an object below blobs is complete and has the digest that is its name. The bytes of an upload are hashed as they
// arrive, the server checks the hash of each part, and what has become one object below uploads is copied to its name by the server;
// small blobs are put at once. The state of uploads is kept by a metadata.Uploads: it is saved after each part and when the upload is
// closed, after the objects that it names. So a replica that dies leaves an upload that others can resume from its last part, and
// objects that Expire removes.
//
// A part is spooled to a file before it is sent, so the memory for an upload does not depend on its size.
package s3

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// Options configure a Store.
type Options struct {
	Endpoint  string // URL of the server, such as https://s3.eu-central-1.amazonaws.com
	Bucket    string // which exists
	Prefix    string // of all keys; "" = none
	Region    string // "" = the server says
	AccessKey string // "" = from the environment, ~/.aws/credentials, or the machine's role
	SecretKey string
	PathStyle bool   // the bucket is part of the path and not of the host
	Spool     string // directory of temporary files; "" = the system's
	Uploads   metadata.Uploads
	PartSize  int64 // smallest part in bytes; 0 = 8 MiB

	Transport http.RoundTripper // nil = one of its own
	Spans     Spans             // nil = none
}

// Spans makes spans of requests for traces.
type Spans interface {
	Begin(ctx context.Context, name string) (_ context.Context, end func(error))
}

// traced makes a span of each request, until its answer begins.
type traced struct {
	http.RoundTripper
	spans Spans
}

func (t traced) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, end := t.spans.Begin(r.Context(), "s3 "+r.Method)
	resp, err := t.RoundTripper.RoundTrip(r.WithContext(ctx))
	end(err)
	return resp, err
}

// Store is a bucket. Safe for concurrent use.
type Store struct {
	o      Options
	client minio.Core

	mu     sync.Mutex
	pinged time.Time // when the last write of Ping succeeded
}

var _ blobs.Store = (*Store)(nil)

const (
	defaultPart = 8 << 20
	unknownPart = 32 << 20 // part of a body of unknown length
	maxParts    = 10_000   // of the protocol
	maxCopy     = 5 << 30  // bytes of one copy, of the protocol
	copyPart    = 1 << 30

	tries          = 7
	requestTimeout = 30 * time.Second
	copyTimeout    = 10 * time.Minute
	slowest        = 64 << 10 // bytes per second that a server must take
	stall          = 30 * time.Second
	pingEvery      = 30 * time.Second
)

// Open returns a store in a bucket. The error's class is errs.Unavailable when the server does not answer, and errs.Precondition when
// there is no such bucket.
func Open(ctx context.Context, o Options) (*Store, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
		return nil, errs.New(errs.Invalid, "s3: %q is not an address such as https://s3.example.com", o.Endpoint)
	}
	if o.Bucket == "" {
		return nil, errs.New(errs.Invalid, "s3: the name of the bucket is missing")
	}
	if o.Prefix = strings.Trim(o.Prefix, "/"); o.Prefix != "" {
		o.Prefix += "/"
	}
	if o.PartSize == 0 {
		o.PartSize = defaultPart
	}
	if o.Transport == nil {
		o.Transport = transport()
	}
	through := o.Transport
	if o.Spans != nil {
		through = traced{o.Transport, o.Spans}
	}
	lookup := minio.BucketLookupAuto
	if o.PathStyle {
		lookup = minio.BucketLookupPath
	}
	client, err := minio.NewCore(u.Host, &minio.Options{
		Creds: keys(o), Secure: u.Scheme == "https", Transport: through, Region: o.Region, BucketLookup: lookup, MaxRetries: tries,
	})
	if err != nil {
		return nil, errs.New(errs.Invalid, "s3: %w", err)
	}
	s := &Store{o: o, client: *client}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	exists, err := client.BucketExists(ctx, o.Bucket)
	if err == nil && !exists {
		err = errs.New(errs.Precondition, "s3: the bucket %s does not exist", o.Bucket).WithHint("Create it first.")
	}
	if err != nil {
		return nil, errors.Join(classify("bucket "+o.Bucket, err), s.Close())
	}
	return s, nil
}

func keys(o Options) *credentials.Credentials {
	if o.AccessKey != "" {
		return credentials.NewStaticV4(o.AccessKey, o.SecretKey, "")
	}
	return credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{}})
}

func transport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       time.Minute,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: 2 * time.Second,
		ResponseHeaderTimeout: 5 * time.Minute, // of a copy of 1 GiB
		DisableCompression:    true,
	}
}

// Close closes idle connections.
func (s *Store) Close() error {
	if t, ok := s.o.Transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
	return nil
}

// Ping reports whether the bucket answers. Now and then it writes an object.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s.mu.Lock()
	write := time.Since(s.pinged) > pingEvery
	s.mu.Unlock()
	if !write {
		_, err := s.client.BucketExists(ctx, s.o.Bucket)
		return classify("bucket "+s.o.Bucket, err)
	}
	_, err := s.client.PutObject(ctx, s.o.Bucket, s.o.Prefix+"uploads/ping", strings.NewReader(""), 0, "", "", minio.PutObjectOptions{})
	if err != nil {
		return classify("bucket "+s.o.Bucket, err)
	}
	s.mu.Lock()
	s.pinged = time.Now()
	s.mu.Unlock()
	return nil
}

func (s *Store) key(d content.Digest) string {
	hex := d.Hex()
	return s.o.Prefix + "blobs/" + string(d.Algorithm()) + "/" + hex[:2] + "/" + hex
}

func (s *Store) uploadKey(id, name string) string { return s.o.Prefix + "uploads/" + id + "/" + name }

// limit returns a context for sending or receiving n bytes.
func limit(ctx context.Context, n int64) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, requestTimeout+time.Duration(n/slowest)*time.Second)
}

// classify returns the error for the callers of the store.
func classify(what string, err error) error {
	var classified *errs.Error
	var source *blobs.SourceError
	if err == nil || errors.As(err, &classified) || errors.As(err, &source) {
		return err
	}
	switch r := minio.ToErrorResponse(err); {
	case r.Code == "NoSuchBucket":
		return errs.New(errs.Precondition, "%s: %w", what, err)
	case r.Code == "NoSuchKey" || r.Code == "NoSuchUpload" || r.StatusCode == http.StatusNotFound:
		return errs.New(errs.NotFound, "%s: not in the store", what)
	case r.Code == "QuotaExceeded" || r.StatusCode == http.StatusInsufficientStorage || r.Code == "XMinioStorageFull" || r.Code == "XAmzQuotaExceeded":
		return errs.New(errs.Exhausted, "%s: the S3 server has no room: %w", what, err)
	case r.Code == "" && r.StatusCode == 0, r.StatusCode >= 500, r.StatusCode == http.StatusTooManyRequests, r.StatusCode == http.StatusRequestTimeout:
		return errs.New(errs.Unavailable, "%s: the S3 server does not answer: %w", what, err)
	}
	return errs.New(errs.Internal, "%s: %w", what, err)
}

// fail classifies an error of a request. When the caller's context has ended, that is the reason.
func fail(ctx context.Context, what string, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return classify(what, err)
}

// stat returns the size of an object.
func (s *Store) stat(ctx context.Context, key string) (int64, error) {
	try, cancel := limit(ctx, 0)
	defer cancel()
	info, err := s.client.StatObject(try, s.o.Bucket, key, minio.StatObjectOptions{})
	return info.Size, fail(ctx, "object "+key, err)
}

// Stat returns the size of a blob.
func (s *Store) Stat(ctx context.Context, d content.Digest) (int64, error) {
	return s.stat(ctx, s.key(d))
}

// Open opens a blob.
func (s *Store) Open(ctx context.Context, d content.Digest) (io.ReadSeekCloser, int64, error) {
	o := &object{ctx: ctx, s: s, key: s.key(d), size: -1}
	if err := o.open(); err != nil {
		return nil, 0, err
	}
	return o, o.size, nil
}

// Redirect returns an address at which everyone may read a blob for a time.
func (s *Store) Redirect(ctx context.Context, d content.Digest) (string, error) {
	u, err := s.client.PresignedGetObject(ctx, s.o.Bucket, s.key(d), redirectTime, url.Values{"response-content-type": {"application/octet-stream"}})
	if err != nil {
		return "", fail(ctx, "blob "+string(d), err)
	}
	return u.String(), nil
}

const redirectTime = 20 * time.Minute

func (s *Store) remove(ctx context.Context, key string) error {
	try, cancel := limit(ctx, 0)
	defer cancel()
	err := fail(ctx, "object "+key, s.client.RemoveObject(try, s.o.Bucket, key, minio.RemoveObjectOptions{}))
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// Remove removes a blob.
func (s *Store) Remove(ctx context.Context, d content.Digest) error {
	return s.remove(ctx, s.key(d))
}

// list calls visit for the objects below a prefix.
func (s *Store) list(ctx context.Context, prefix string, visit func(minio.ObjectInfo) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the listing when visit fails
	for o := range s.client.ListObjectsIter(ctx, s.o.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			return fail(ctx, "objects "+prefix, o.Err)
		}
		if err := visit(o); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// Walk visits every blob.
func (s *Store) Walk(ctx context.Context, visit func(d content.Digest, size int64, stored time.Time) error) error {
	for _, a := range content.Algorithms {
		prefix := s.o.Prefix + "blobs/" + string(a) + "/"
		err := s.list(ctx, prefix, func(o minio.ObjectInfo) error {
			_, hex, _ := strings.Cut(strings.TrimPrefix(o.Key, prefix), "/")
			d, err := content.ParseDigest(string(a) + ":" + hex)
			if err != nil || s.key(d) != o.Key {
				return nil //nolint:nilerr // an object of someone else
			}
			return visit(d, o.Size, o.LastModified)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// put stores an object whose hash the server checks.
func (s *Store) put(ctx context.Context, key string, r *io.SectionReader, sha256 string) error {
	try, cancel := limit(ctx, r.Size())
	defer cancel()
	_, err := s.client.PutObject(try, s.o.Bucket, key, r, r.Size(), "", sha256, minio.PutObjectOptions{ContentType: "application/octet-stream", DisableContentSha256: true})
	return fail(ctx, "object "+key, err)
}

// copy makes an object of another one, at the server.
func (s *Store) copy(ctx context.Context, from, to string, size int64) error {
	if size > maxCopy {
		return s.copyParts(ctx, from, to, size)
	}
	try, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	_, err := s.client.CopyObject(try, s.o.Bucket, from, s.o.Bucket, to, nil, minio.CopySrcOptions{}, minio.PutObjectOptions{})
	return fail(ctx, "object "+to, err)
}

func (s *Store) copyParts(ctx context.Context, from, to string, size int64) (err error) {
	id, err := s.client.NewMultipartUpload(ctx, s.o.Bucket, to, minio.PutObjectOptions{ContentType: "application/octet-stream"})
	if err != nil {
		return fail(ctx, "object "+to, err)
	}
	var parts []minio.CompletePart
	for at := int64(0); at < size && err == nil; at += copyPart {
		var p minio.CompletePart
		try, cancel := context.WithTimeout(ctx, copyTimeout)
		p, err = s.client.CopyObjectPart(try, s.o.Bucket, from, s.o.Bucket, to, id, len(parts)+1, at, min(copyPart, size-at), nil)
		cancel()
		parts = append(parts, p)
	}
	if err == nil {
		_, err = s.client.CompleteMultipartUpload(ctx, s.o.Bucket, to, id, parts, minio.PutObjectOptions{})
	}
	if err != nil {
		return errors.Join(fail(ctx, "object "+to, err), s.abort(context.WithoutCancel(ctx), to, id))
	}
	return nil
}

func (s *Store) abort(ctx context.Context, key, id string) error {
	try, cancel := limit(ctx, 0)
	defer cancel()
	err := fail(ctx, "object "+key, s.client.AbortMultipartUpload(try, s.o.Bucket, key, id))
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// temporary makes a file without a name.
func (s *Store) temporary() (*os.File, error) {
	return durable.Nameless(cmp.Or(s.o.Spool, os.TempDir()))
}
