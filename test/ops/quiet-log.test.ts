import { createLog } from '../../ops/log.ts'
import { quietly } from '../../ops/quiet-log.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('ops: quiet log')

test('a flood of one kind is bounded and counted; other kinds, and information, go on', () => {
  const lines: string[] = []
  let now = 0
  const log = quietly(createLog({ format: 'text', write: line => void lines.push(line) }), () => now).child({ who: 'x' })
  for (let i = 0; i < 1000; i++) log.warn('refused', { i })
  log.warn('another')
  for (let i = 0; i < 100; i++) log.info('said')
  assert.equal([lines.filter(line => line.includes('refused')).length, lines.length], [30, 131])
  now = 61_000
  log.child({ more: 1 }).warn('refused')
  assert.match(lines.at(-2) ?? '', /repeated log lines dropped .*of=refused lines=970/)
  assert.match(lines.at(-1) ?? '', /refused/)
})

test.run()
