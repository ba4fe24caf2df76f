// A queue of inbound connections or streams between producers and consumers. Enters: items, then possibly an end.
// Leaves: each item once, in order; null for ever after the end. Always holds: at most `limit` items wait; push returns
// false for more, and the producer disposes of the item.

/** Connections that a listener has accepted and nobody has taken yet. */
export const BACKLOG_CONNECTIONS = 256

export type Inbox<T> = {
  /** False: the inbox is full or has ended, and the item was not added. */
  push(item: T): boolean
  next(): Promise<T | null>
  /** No more items; waiting items are returned for disposal. */
  end(): T[]
}

export function createInbox<T>(limit: number): Inbox<T> {
  const items: T[] = []
  const waiting: ((item: T | null) => void)[] = []
  let ended = false
  return {
    push(item) {
      if (ended) return false
      const taker = waiting.shift()
      if (taker) {
        taker(item)
        return true
      }
      if (items.length >= limit) return false
      items.push(item)
      return true
    },
    next() {
      const item = items.shift()
      if (item !== undefined) return Promise.resolve(item)
      if (ended) return Promise.resolve(null)
      return new Promise(resolve => waiting.push(resolve))
    },
    end() {
      ended = true
      for (const taker of waiting.splice(0)) taker(null)
      return items.splice(0)
    },
  }
}
