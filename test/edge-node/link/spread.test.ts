import type { Bulk } from '../../../edge-node/link/link.ts'
import { watchSpread } from '../../../edge-node/link/spread.ts'
import type { EngineName } from '../../../transport/types.ts'
import { silentLog } from '../../../wire/log.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('link: spread')

/** What is asked for after `seconds` over a way that loses `ratio`. */
function asked(bulk: Partial<Bulk>, ratio: number, seconds = 20): (EngineName | undefined)[][] {
  const wanted: (EngineName | undefined)[][] = []
  const now: Bulk = { engine: 'quic', congestion: 'cubic', connections: 1, sentPackets: 0, lostPackets: 0, ...bulk }
  const link = { bulk: () => now, dataConnections: (list: unknown) => void wanted.push(list as (EngineName | undefined)[]) }
  const spread = watchSpread(link, [undefined, 'tls'], silentLog)
  for (let i = 0; i < seconds; i++) {
    now.sentPackets += 5000
    now.lostPackets += Math.round(5000 * ratio)
    spread.look(i * 1000)
  }
  spread.stop()
  return wanted
}

test('under loss and CUBIC eight connections are kept, and asked for once', () => {
  const [list, ...more] = asked({}, 0.01)
  assert.is(list!.length, 8)
  assert.equal(list!.slice(0, 2), [undefined, 'tls'])
  assert.is(more.length, 0)
})

test('without loss, with BBR, or after a moment of loss nothing changes', () => {
  assert.equal(asked({}, 0.05, 8), [])
  assert.equal(asked({}, 0), [])
  assert.equal(asked({ engine: 'tls', congestion: 'bbr' }, 0.01), [])
})

test.run()
