package chain

func (c *checker) opinion() {}
