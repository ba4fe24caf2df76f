// godwit status --watch. Enters: the feed of events, the gateway's status at each reset. Leaves: on a terminal the
// state, redrawn; else the state once, then a line for each event.
import type { HttpTarget } from '../ops/http-client.ts'
import type { GatewayStatus } from '../wire/admin.ts'
import { EXIT, toGodwitError } from '../wire/errors.ts'
import type { FeedEvent } from '../wire/events.ts'
import { gatewayTarget } from './client.ts'
import type { ClientFlags } from './config.ts'
import { followEvents, untilCtrlC } from './events.ts'
import type { Io } from './io.ts'
import { clean } from './output.ts'
import { renderStatus } from './status-view.ts'
import { applyEvent, renderEvent } from './watch.ts'

/** Ages and times to go change without an event. */
const REDRAW_MS = 1000
/** Many events at once are one drawing. */
const SETTLE_MS = 50
const LATEST_SHOWN = 8

type View = {
  state(status: GatewayStatus, isAnew: boolean): void
  event(id: string, event: FeedEvent): void
  note(text: string): void
  close(): void
}

export async function watchStatus(io: Io, options: ClientFlags & { json: boolean }): Promise<number> {
  const { requestJson } = await import('../ops/http-client.ts')
  const target: HttpTarget = await gatewayTarget(io, options)
  const { signal, release } = untilCtrlC(io)
  const view = options.json ? jsonView(io) : io.output.isTTY === true ? terminalView(io) : linesView(io)
  let status: GatewayStatus | undefined
  const read = async () => {
    try {
      return await requestJson<GatewayStatus>({ ...target, path: '/v1/status', signal })
    } catch (error) {
      // The stream finds out whether the gateway has gone; the next event reads again.
      if (!signal.aborted) view.note(`reading the status failed: ${toGodwitError(error).message}`)
      return undefined
    }
  }
  try {
    for await (const { id, event } of followEvents({ target, signal, onNote: view.note })) {
      view.event(id, event)
      // Read after the stream has begun: what happens meanwhile comes as an event too, and applies twice without harm.
      const isAnew = event.event === 'reset' || !status
      const next = isAnew || !status ? await read() : applyEvent(status, event)
      if (next && next !== status) view.state(next, isAnew)
      status = next
    }
    return EXIT.ok
  } finally {
    view.close()
    release()
  }
}

function jsonView(io: Io): View {
  return {
    event: (id, event) => io.out(`${JSON.stringify({ id, ...event })}\n`),
    state(status, isAnew) {
      if (isAnew) io.out(`${JSON.stringify({ event: 'status', at: Date.now(), status })}\n`)
    },
    note: text => io.err(`${clean(text)}\n`),
    close() {},
  }
}

function linesView(io: Io): View {
  return {
    event(_id, event) {
      if (event.event !== 'reset' || event.why !== 'start') io.out(`${clean(renderEvent(event))}\n`)
    },
    state(status, isAnew) {
      if (isAnew) io.out(`${renderStatus(status, Date.now())}\n`)
    },
    note: text => io.err(`${clean(text)}\n`),
    close() {},
  }
}

/** Redraws from the top left corner; what is left below of an earlier drawing is wiped. */
function terminalView(io: Io): View {
  let shown: GatewayStatus | undefined
  let latest: string[] = []
  let isScreenMine = false
  let settling: NodeJS.Timeout | undefined
  const draw = () => {
    settling = undefined
    if (!shown) return
    const text = `${renderStatus(shown, Date.now())}\n${latest.map(line => `${line}\n`).join('')}`
    io.out(`${isScreenMine ? '' : '\u001b[2J'}\u001b[H${text.replaceAll('\n', '\u001b[K\n')}\u001b[J`)
    isScreenMine = true
  }
  const soon = () => {
    settling ??= setTimeout(draw, SETTLE_MS)
  }
  const push = (line: string) => {
    latest = [...latest, clean(line)].slice(-LATEST_SHOWN)
    soon()
  }
  const timer = setInterval(soon, REDRAW_MS)
  return {
    event(_id, event) {
      if (event.event !== 'migration-progress' && event.event !== 'reset') push(renderEvent(event))
    },
    state(status) {
      shown = status
      soon()
    },
    note: push,
    close() {
      clearInterval(timer)
      clearTimeout(settling)
      draw()
    },
  }
}
