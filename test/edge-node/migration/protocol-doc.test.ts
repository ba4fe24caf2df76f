// docs/reference/protocol.md and the code say the same of the hand-over and of the messages.
import { readFileSync } from 'node:fs'
import { SOURCE, TARGET } from '../../../edge-node/migration/states.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('the hand-over in docs/reference/protocol.md')
const text = readFileSync(new URL('../../../docs/reference/protocol.md', import.meta.url), 'utf8')

/** Rows of the table whose header begins with `first`, as cells. */
function tableOf(first: string): string[][] {
  const lines = text.slice(text.indexOf(`| ${first} |`)).split('\n')
  const end = lines.findIndex(line => !line.startsWith('|'))
  return lines.slice(2, end).map(line =>
    line
      .slice(1, -1)
      .split('|')
      .map(cell => cell.trim()),
  )
}

for (const [name, table] of [
  ['source', SOURCE],
  ['target', TARGET],
] as const) {
  test(`the states of the ${name} are those of the table`, () => {
    const rows = tableOf(`${name} state`).map(([state, events]) => [
      state!.replace('*', ''),
      Object.fromEntries((events ?? '').split(';').flatMap(pair => (pair ? [pair.split(':').map(part => part.trim())] : []))),
    ])
    assert.equal(Object.fromEntries(rows), { ...table })
  })
}

test('every message type is in the table', () => {
  const code = readFileSync(new URL('../../../edge-node/migration/messages.ts', import.meta.url), 'utf8')
  const types = [...code.matchAll(/z\.literal\('([A-Z]+)'\)/g)].map(([, type]) => type).sort()
  assert.equal(
    tableOf('message')
      .map(([type]) => type)
      .sort(),
    types,
  )
})

test.run()
