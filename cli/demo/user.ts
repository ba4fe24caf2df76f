// A user of a VM's service, like an application on a phone: requests a page at a fixed rate through a stable address
// and records each outcome. Enters: an address, a rate, a deadline. Leaves: for each request its start, its duration
// and the guest's answer. Always holds: the clock starts requests, not the answers, so a service that stops does not
// stop the count; a GET whose connection was cut is retried until its deadline, as browsers do (RFC 9110, 9.2.2: safe
// methods); a request without an answer by then is lost; the number of parallel requests is bounded.
import { request } from 'node:http'

export type UserRequest = {
  madeMs: number
  /** Undefined: the request was lost. */
  answeredMs: number | undefined
  attempts: number
  /** Why the last attempt failed. */
  failure?: string
}

export type UserSummary = {
  made: number
  answered: number
  lost: number
  /** Answered over a second connection, because the first was cut. */
  retried: number
  /** The longest time without any answer. */
  longestGapMs: number
  p50Ms: number
  p95Ms: number
  maxMs: number
}

export type DemoUser = {
  /** All requests made so far, in order. */
  readonly requests: readonly UserRequest[]
  /** Of the requests made in a span of time. */
  summary(fromMs?: number, toMs?: number): UserSummary
  /** Wrong answers: another guest, or an older state than before. */
  readonly wrong: readonly string[]
  /** Starts no more requests; resolves when the last one is answered or lost. */
  stop(): Promise<void>
}

type UserOptions = { host: string; port: number; everyMs: number; deadlineMs: number; now: () => number }

const AT_ONCE_MAX = 256
const RETRY_MS = 20
const BODY_MAX = 64 * 1024
const WRONG_MAX = 20

export function createUser(options: UserOptions): DemoUser {
  const { everyMs, deadlineMs, now } = options
  const requests: UserRequest[] = []
  const wrong: string[] = []
  const pending = new Set<Promise<void>>()
  const seen = { boot: '', beat: 0 }

  /** The boot id must not change, and a beat must not be older than the newest one at the start of the request. */
  const check = (page: string, beatBefore: number) => {
    const found = /boot=([0-9a-f-]+) beat=(\d+) /.exec(page)
    const [boot, beat] = [found?.[1] ?? '', Number(found?.[2] ?? Number.NaN)]
    if (seen.boot === '') seen.boot = boot
    const fault =
      boot !== seen.boot ? `another guest answered: ${page.slice(0, 200)}` : beat < beatBefore ? `beat ${beat} after ${beatBefore}` : ''
    if (fault !== '' && wrong.length < WRONG_MAX) wrong.push(fault)
    seen.beat = Math.max(seen.beat, beat)
  }

  const ask = async (entry: UserRequest) => {
    const beatBefore = seen.beat
    const endMs = entry.madeMs + deadlineMs
    for (;;) {
      entry.attempts += 1
      try {
        const page = await get(options, Math.max(1, endMs - now()))
        entry.answeredMs = now()
        check(page, beatBefore)
        return
      } catch (error) {
        entry.failure = error instanceof Error ? error.message : String(error)
        if (now() + RETRY_MS >= endMs) return
        await new Promise(resolve => setTimeout(resolve, RETRY_MS))
      }
    }
  }
  const make = () => {
    if (pending.size >= AT_ONCE_MAX) return
    const entry: UserRequest = { madeMs: now(), answeredMs: undefined, attempts: 0 }
    requests.push(entry)
    const asked = ask(entry).finally(() => pending.delete(asked))
    pending.add(asked)
  }
  const timer = setInterval(make, everyMs)
  return {
    requests,
    wrong,
    summary: (fromMs = Number.NEGATIVE_INFINITY, toMs = Number.POSITIVE_INFINITY) =>
      summarize(
        requests.filter(({ madeMs }) => madeMs >= fromMs && madeMs < toMs),
        now() - deadlineMs,
      ),
    async stop() {
      clearInterval(timer)
      await Promise.all(pending)
    },
  }
}

/** Pure. A request without an answer is lost when it was made before `lostBeforeMs`; later ones are still pending. */
export function summarize(requests: readonly UserRequest[], lostBeforeMs: number): UserSummary {
  const answered = requests.filter(one => one.answeredMs !== undefined)
  const took = answered.map(({ madeMs, answeredMs }) => answeredMs! - madeMs).toSorted((a, b) => a - b)
  const times = answered.map(({ answeredMs }) => answeredMs!).toSorted((a, b) => a - b)
  const at = (share: number) => took[Math.min(took.length - 1, Math.floor(share * took.length))] ?? Number.NaN
  return {
    made: requests.length,
    answered: answered.length,
    lost: requests.filter(({ answeredMs, madeMs }) => answeredMs === undefined && madeMs < lostBeforeMs).length,
    retried: answered.filter(({ attempts }) => attempts > 1).length,
    longestGapMs: times.reduce((longest, time, i) => (i === 0 ? 0 : Math.max(longest, time - times[i - 1]!)), 0),
    p50Ms: at(0.5),
    p95Ms: at(0.95),
    maxMs: took.at(-1) ?? Number.NaN,
  }
}

/** One connection, one page. */
function get({ host, port }: UserOptions, timeoutMs: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const asking = request({ host, port, path: '/', agent: false }, answer => {
      let page = ''
      answer.setEncoding('utf8')
      answer.on('data', chunk => {
        page += chunk
        if (page.length > BODY_MAX) asking.destroy(new Error('the page is too large'))
      })
      answer.once('end', () => {
        clearTimeout(timer)
        if (answer.complete && answer.statusCode === 200) resolve(page)
        else reject(new Error(`status ${answer.statusCode}${answer.complete ? '' : ', cut short'}`))
      })
      answer.once('error', reject)
    })
    const timer = setTimeout(() => asking.destroy(new Error('no answer in time')), timeoutMs)
    asking.once('error', error => {
      clearTimeout(timer)
      reject(error)
    })
    asking.end()
  })
}
