// The only file that knows @fails-components/webtransport. Enters: nothing. Leaves: its client and server classes,
// whether HTTP/3 is available, and access to internals of its HTTP/2 sessions that its API lacks (each such access does
// nothing if the internals differ). Measured with 1.6.8: it never raises Node's HTTP/2 window of 64 KiB, so one
// connection carries 64 KiB per round trip (3 Mbit/s at 100 ms). This file raises it (RFC 9113, section 6.9.2: new
// SETTINGS also change the windows of open streams): then one stream carried 240 Mbit/s at 100 ms on a busy machine.
import type { Http2Session } from 'node:http2'

export type WtStream = { readable: ReadableStream<Uint8Array>; writable: WritableStream<Uint8Array> }
export type WtSession = {
  ready: Promise<void>
  closed: Promise<unknown>
  incomingBidirectionalStreams: ReadableStream<WtStream>
  createBidirectionalStream(): Promise<WtStream>
  close(info?: { closeCode?: number; reason?: string }): void
  /** Server side only. */
  peerAddress?: string
}
export type WtServer = {
  ready: Promise<void>
  startServer(): void
  stopServer(): void
  address(): { host: string; port: number } | null
  sessionStream(path: string): ReadableStream<WtSession>
  updateCert(certificatePem: string, keyPem: string, http2only: boolean): void
}
type FlowOptions = { initialStreamFlowControlWindow: number; initialSessionFlowControlWindow: number }
type WtServerOptions = { host: string; port: number; secret: string; cert: string; privKey: string } & FlowOptions
type WtClientOptions = {
  serverCertificateHashes: { algorithm: 'sha-256'; value: Uint8Array }[]
  forceReliable: boolean
  quicConnectTimeout: number
} & FlowOptions
export type WtLibrary = {
  WebTransport: new (url: string, options: WtClientOptions) => WtSession
  Http2Server: new (options: WtServerOptions) => WtServer
  /** HTTP/3 and HTTP/2 on the same port number. */
  HttpServer: new (
    options: WtServerOptions & { reliability: 'both' },
  ) => WtServer
  http3: boolean
}

const LIBRARY = '@fails-components/webtransport'
const HTTP3 = '@fails-components/webtransport-transport-http3-quiche'
const NOISE = /http3 loader|Problem loading http3-quiche|Did you install @fails-components/

let loading: Promise<WtLibrary> | undefined

/** The library; rejects when it is not installed. */
export function loadWebTransport(): Promise<WtLibrary> {
  loading ??= quietly(async () => {
    const library = (await import(LIBRARY)) as Omit<WtLibrary, 'http3'> & { quicheLoaded: Promise<unknown> }
    await library.quicheLoaded
    const http3 = await import(HTTP3).then(
      () => true,
      () => false,
    )
    return { WebTransport: library.WebTransport, Http2Server: library.Http2Server, HttpServer: library.HttpServer, http3 }
  })
  return loading
}

/** The library prints to stdout and stderr if HTTP/3 is missing, but stdout is for the command's output. */
async function quietly<T>(body: () => Promise<T>): Promise<T> {
  const { log, error } = console
  const filter =
    (print: typeof log) =>
    (...words: unknown[]) => {
      if (!NOISE.test(String(words[0]))) print(...words)
    }
  console.log = filter(log)
  console.error = filter(error)
  try {
    return await body()
  } finally {
    console.log = log
    console.error = error
  }
}

type ClientInside = { sessionint?: { parentobj?: { transportInt?: { clientInt?: Http2Session } } } }
type SessionInside = { objint?: { stream?: { session?: Http2Session } } }
type Http2Inside = { serverInt?: { on(event: 'session', listener: (session: Http2Session) => void): void } }
type ServerInside = { transportInt?: Http2Inside & { transportsInts?: Set<Http2Inside> } }

/** The HTTP/2 session of a WebTransport session, if it uses HTTP/2. */
export function http2Of(session: WtSession): Http2Session | undefined {
  return (session as ClientInside).sessionint?.parentobj?.transportInt?.clientInt ?? (session as SessionInside).objint?.stream?.session
}

/** Calls `listener` for every HTTP/2 connection that a started server accepts, before any request on it. */
export function onHttp2Connection(server: WtServer, listener: (session: Http2Session) => void): void {
  const inside = (server as ServerInside).transportInt
  const guarded = (session: Http2Session) => {
    guardPing(session)
    listener(session)
  }
  for (const each of inside?.transportsInts ?? [inside]) each?.serverInt?.on('session', guarded)
}

/**
 * The library pings once a second, from a timer and until 'close'. Between destroy() and 'close', which waits for
 * unsent bytes, Node's ping throws, which would end the process. May be applied twice.
 */
export function guardPing(session: Http2Session | undefined): void {
  if (!session) return
  const ping = session.ping.bind(session) as (...args: unknown[]) => boolean
  session.ping = (...args: unknown[]) => !session.destroyed && !session.closed && ping(...args)
}

/** Allows the peer to send `bytes` per round trip instead of 64 KiB. */
export function raiseHttp2Window(session: Http2Session | undefined, bytes: number): void {
  if (!session || session.destroyed) return
  session.settings({ initialWindowSize: bytes })
  session.setLocalWindowSize(bytes)
}
