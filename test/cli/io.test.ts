import { runUntilInterrupted } from '../../cli/io.ts'
import { GodwitError } from '../../wire/errors.ts'
import { assert, codeOf, suite } from '../support/suite.ts'
import { recordingIo } from './recording-io.ts'

const test = suite('cli: a signal ends what runs')

test('one that comes while it starts is not lost: it is closed when it has started', async () => {
  const io = recordingIo()
  const started = Promise.withResolvers<{ close(): Promise<void> }>()
  let closed = 0
  const ended = runUntilInterrupted(io, () => started.promise)
  io.interrupt()
  started.resolve({ close: async () => void closed++ })
  await ended
  assert.equal({ closed, exits: io.exits }, { closed: 1, exits: [] })
})

test('a start that does not end within 2 s of the signal is broken off', async () => {
  const io = recordingIo()
  const started = Promise.withResolvers<{ close(): Promise<void> }>()
  const ended = runUntilInterrupted(io, () => started.promise)
  io.interrupt()
  await new Promise(resolve => setTimeout(resolve, 2_500))
  assert.equal(io.exits, [130])
  started.resolve({ close: async () => {} })
  await ended
})

test('one that comes later closes it, a second one ends the process; what breaks is closed and its error thrown', async () => {
  const io = recordingIo()
  let closed = 0
  const close = async () => void closed++
  const ended = runUntilInterrupted(io, async () => ({ close }))
  await Promise.resolve()
  io.interrupt()
  io.interrupt()
  await ended
  assert.equal({ closed, exits: io.exits }, { closed: 1, exits: [130] })
  const broken = Promise.resolve(new GodwitError('STORE_FAILED', 'no space left on device'))
  assert.is(await codeOf(() => runUntilInterrupted(recordingIo(), async () => ({ close, broken }))), 'STORE_FAILED')
  assert.is(closed, 2)
})

test.run()
