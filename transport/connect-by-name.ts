// Connects to a name that may have several addresses, for every engine. Enters: a host, a resolver, a function that
// connects to one address. Leaves: the first established connection, or one error that lists each address with its
// reason. Always holds: the deadline covers resolving and all attempts; later connections are closed.
import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import { sleep, within } from '../ops/deadline.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'
import { Attempts } from './happy-eyeballs.ts'
import type { Connection, ConnectOptions } from './types.ts'

/** Addresses of a name, the best first. Rejects if there are none. */
export type Resolve = (host: string) => Promise<string[]>

const resolveBySystem: Resolve = async host => (await lookup(host, { all: true, order: 'verbatim' })).map(({ address }) => address)

/** `host` is an address; `serverName`: the name that was resolved to it. */
export type AddressOptions = ConnectOptions & { timeoutMs: number; serverName: string | undefined; isOnly: boolean; signal: AbortSignal }
type ConnectOne = (options: AddressOptions) => Promise<Connection>

const join = (host: string, port: number) => (host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`)

/**
 * `what`: the engine's name in errors. CONNECT_FAILED, CONNECT_TIMEOUT, or the error of `connectOne`; the signal's
 * reason if it is aborted.
 */
export async function connectByName(
  options: ConnectOptions,
  { what, resolve = resolveBySystem, connectOne }: { what: string; resolve?: Resolve | undefined; connectOne: ConnectOne },
): Promise<Connection> {
  const { host, port, timeoutMs = 10_000, signal } = options
  signal?.throwIfAborted()
  const endMs = performance.now() + timeoutMs
  const where = `${what} to ${join(host, port)}`
  const addresses = isIP(host) ? [host] : await addressesOf(host, where, resolve, { ms: timeoutMs, signal })
  const stop = new AbortController()
  const onAbort = () => stop.abort(signal?.reason)
  signal?.addEventListener('abort', onAbort, { once: true })
  const failures: { address: string; error: GodwitError }[] = []
  const attempts = new Attempts(addresses)
  const changed = { wake: () => {} }
  const running = new Set<string>()
  let winner: Connection | undefined

  const attempt = async (address: string): Promise<void> => {
    running.add(address)
    try {
      const left = Math.max(1, endMs - performance.now())
      const serverName = isIP(host) ? undefined : host
      const connection = await connectOne({
        host: address,
        port,
        timeoutMs: left,
        serverName,
        isOnly: addresses.length === 1,
        signal: stop.signal,
      })
      if (winner || stop.signal.aborted) return void (await connection.close('another address connected first'))
      winner = connection
    } catch (error) {
      failures.push({ address, error: toGodwitError(error, 'CONNECT_FAILED') })
      attempts.failed()
    } finally {
      running.delete(address)
      changed.wake()
    }
  }
  try {
    while (!winner && !stop.signal.aborted && performance.now() < endMs + GRACE_MS) {
      const change = new Promise<void>(resolve => {
        changed.wake = resolve
      })
      const address = attempts.due(performance.now())
      if (address !== undefined) void attempt(address)
      const waitMs = attempts.waitMs(performance.now())
      if (waitMs === undefined && running.size === 0) break
      const turn = new AbortController()
      const nextTurn = sleep(waitMs ?? Math.max(1, endMs - performance.now() + GRACE_MS), AbortSignal.any([turn.signal, stop.signal]))
      await Promise.race([change, nextTurn.catch(() => {})])
      turn.abort()
    }
  } finally {
    signal?.removeEventListener('abort', onAbort)
    stop.abort(new GodwitError('CONNECT_FAILED', `${where}: another address connected first`))
  }
  if (winner) return winner
  signal?.throwIfAborted()
  throw allFailed(where, isIP(host) !== 0, failures)
}

/** An attempt has its own deadline; its error is more precise, so wait for it. */
const GRACE_MS = 1_000

async function addressesOf(
  host: string,
  where: string,
  resolve: Resolve,
  { ms, signal }: { ms: number; signal: AbortSignal | undefined },
): Promise<string[]> {
  try {
    const addresses = await within(resolve(host), { ms, what: `${where}: resolving '${host}'`, code: 'CONNECT_TIMEOUT', signal })
    if (addresses.length > 0) return addresses
  } catch (error) {
    if (signal?.aborted) throw signal.reason
    if (error instanceof GodwitError) throw error
    const { code, message } = error as NodeJS.ErrnoException
    throw new GodwitError('CONNECT_FAILED', `${where}: the name '${host}' has no address: ${code ?? message}`, { cause: error })
  }
  throw new GodwitError('CONNECT_FAILED', `${where}: the name '${host}' has no address`)
}

function allFailed(where: string, isAddress: boolean, failures: { address: string; error: GodwitError }[]): GodwitError {
  const [first] = failures
  if (!first) return new GodwitError('CONNECT_TIMEOUT', `${where}: no answer`)
  if (isAddress) return first.error
  const each = failures.map(({ address, error }) => `${address}: ${error.message}`).join('; ')
  // A rejection is more informative than a timeout.
  const { code } = failures.find(({ error }) => error.code !== 'CONNECT_TIMEOUT')?.error ?? first.error
  return new GodwitError(code, `${where}: ${each}`, { cause: first.error })
}
