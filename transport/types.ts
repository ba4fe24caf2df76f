// The transport seam: what every engine gives, and what the rest of Godwit may rely on. Engines: quic, tls, webtransport, memory.
// Always holds: a write resolves only when the engine has room (backpressure); a read returns bytes in order; the end of a stream (null),
// its reset (STREAM_RESET) and the loss of its connection (CONNECTION_LOST) are three different things.

/** One bidirectional stream of bytes. Each direction ends on its own (half-close). */
export type Stream = {
  /** Engine's number for logs; not the protocol's stream index. */
  readonly id: number
  /** Resolves when the bytes are accepted and the engine has room for more. The buffer may be reused after that. */
  write(bytes: Uint8Array): Promise<void>
  /** Half-close: no more writes; everything written will arrive. */
  end(): Promise<void>
  /** Next bytes (any size > 0), or null at the peer's end(). One read at a time. */
  read(): Promise<Uint8Array | null>
  /** Abandons both directions at once; the peer's pending read and write reject with STREAM_RESET. Idempotent. */
  reset(reason?: string): void
}

/** What an engine can tell about the path; absent fields are not known to it. */
export type PathStats = {
  rttMs?: number | undefined
  congestionWindowBytes?: number | undefined
  sentBytes?: number | undefined
  receivedBytes?: number | undefined
  lostPackets?: number | undefined
  sentPackets?: number | undefined
  /** Smallest round trip that was seen. */
  rttMinMs?: number | undefined
  /** What this end's sending is governed by: bbr, cubic, ... */
  congestion?: string | undefined
}

export type CloseReason = { code: 'CLOSED' | 'CONNECTION_LOST'; message: string }

/** One authenticated-later connection with many streams. */
export type Connection = {
  readonly engine: EngineName
  readonly remoteAddress: string
  /** SHA-256 of the server's transport certificate (or public key) as this end sees it: both ends' values are equal unless someone sits
   * between them. The node-gateway authentication signs it (channel binding, RFC 5929's idea). 32 bytes. */
  readonly binding: Uint8Array
  openStream(): Promise<Stream>
  /** Next stream the peer opened, or null when the connection has ended. A stream is visible to the peer after its first write. */
  acceptStream(): Promise<Stream | null>
  stats(): PathStats
  /** Pipes that its streams go over in turn; absent: one. */
  readonly lanes?: number
  close(reason?: string): Promise<void>
  /** Resolves (never rejects) when the connection is gone, however that came. */
  readonly closed: Promise<CloseReason>
}

export type Listener = {
  readonly address: { host: string; port: number }
  /** Next inbound connection, or null when the listener is closed. */
  accept(): Promise<Connection | null>
  close(): Promise<void>
}

export type EngineName = 'quic' | 'tls' | 'webtransport' | 'memory'

export type ListenOptions = {
  host: string
  /** 0 takes a free one. UDP for quic and HTTP/3, TCP for tls and HTTP/2. */
  port: number
  signal?: AbortSignal
}

export type ConnectOptions = {
  host: string
  port: number
  /** Rejects with CONNECT_TIMEOUT after this. Default 10_000. */
  timeoutMs?: number
  signal?: AbortSignal
}

export type Engine = {
  readonly name: EngineName
  /** Loads native parts; says why where it cannot. Never throws. */
  available(): Promise<{ ok: true; detail?: string } | { ok: false; reason: string }>
  listen(options: ListenOptions): Promise<Listener>
  connect(options: ConnectOptions): Promise<Connection>
}

/** Which engine was taken, and what was tried before it: for the log and `godwit doctor`. */
export type Selection = { engine: EngineName; tried: { engine: EngineName; outcome: string; tookMs: number }[] }
